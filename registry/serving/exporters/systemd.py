"""A systemd service, sandboxed as far as a GPU server allows (systemd.exec(5))."""

from __future__ import annotations

from registry.serving.exporters import quoting
from registry.serving.exporters.export import API_KEY, Export, Files, heading, name_of, serve
from registry.serving.serving_manifest import flag_lines

FILES = "a service unit"
MODEL = "a folder under `/var/lib/qpack`"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()


def files(export: Export) -> Files:
    """`NAME.service`: vLLM in /opt/vllm, the model in /var/lib/qpack/NAME."""
    name = name_of(export)
    command = serve(export, f"/var/lib/qpack/{name}/model", host="127.0.0.1")
    words = ["/opt/vllm/bin/vllm", *command[1:]]
    offline = {} if export.manifest.draft else {"HF_HUB_OFFLINE": "1"}
    variables = {**offline, "VLLM_NO_USAGE_STATS": "1", "HOME": f"/var/cache/{name}",
                 "XDG_CACHE_HOME": f"/var/cache/{name}", **export.manifest.environment}  # fmt: skip
    lines = "".join(f"Environment={quoting.systemd_variable(key, value)}\n" for key, value in sorted(variables.items()))
    # The program, the model and the flags.
    program = [" ".join(map(quoting.systemd_argument, words[:3]))]
    start = " \\\n    ".join([*program, *flag_lines(words[3:], quoting.systemd_argument)])
    unit = f"""\
[Unit]
Description=vLLM serving {quoting.systemd_value(export.reference)}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
DynamicUser=yes
CacheDirectory={name}
{lines}# Contains {API_KEY}=..., readable only by root. The dash makes it optional.
EnvironmentFile=-/etc/qpack/{name}.env
ExecStart={start}
TimeoutStartSec={export.manifest.probes.startup_budget_seconds}
TimeoutStopSec=60
KillMode=mixed
Restart=on-failure
RestartSec=10
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ReadOnlyPaths=/var/lib/qpack/{name}
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""
    use = (
        f"Use: qpack pull {export.reference} /var/lib/qpack/{name}; install vLLM in a virtual environment, /opt/vllm;",
        f"copy this file to /etc/systemd/system/{name}.service; systemctl enable --now {name}",
    )
    return {f"{name}.service": heading(export, *use) + unit}
