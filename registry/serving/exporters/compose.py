"""A compose file: the server, Prometheus and Grafana.

https://github.com/compose-spec/compose-spec/blob/main/spec.md
"""

from __future__ import annotations

import json

from registry.core.documents import Document, Json
from registry.serving.exporters import grafana, prometheus, quoting
from registry.serving.exporters.export import (
    UID,
    Export,
    Files,
    container_environment,
    heading,
    model_path,
    name_of,
    pinned,
    secrets,
    serve,
    server_image,
    to_yaml,
)

FILES = "`compose.yaml` with vLLM, Prometheus, Grafana, and what they read"
MODEL = "the folder in `MODEL`, read-only"
NEEDS_REPOSITORY = False
PROMETHEUS, GRAFANA = "prom/prometheus:v3.5.0", "grafana/grafana-oss:12.0.0"
IMAGES: tuple[str, ...] = (PROMETHEUS, GRAFANA)

# The users of the two images: nobody, and grafana.
_PROMETHEUS_USER, _GRAFANA_USER = "65534:65534", "472:0"
_SAFE: Document = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


def files(export: Export) -> Files:
    """`compose.yaml`, and the configuration of Prometheus and Grafana that it mounts."""
    name = name_of(export)
    services = {"vllm": _server(export), "prometheus": _prometheus(export), "grafana": _grafana(export)}
    whole: dict[str, Json] = {"name": name, "services": services, "volumes": {"prometheus": {}, "grafana": {}}}
    whole["secrets"] = {"grafana": {"file": "${GRAFANA_ADMIN_PASSWORD_FILE:?a file that holds Grafana's password}"}}
    use = "Use: MODEL=/path/of/release/model GRAFANA_ADMIN_PASSWORD_FILE=/path docker compose up"
    source: Document = {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": "prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": "http://prometheus:9090",
                "isDefault": True,
            }
        ],
    }
    provider: Document = {
        "apiVersion": 1,
        "providers": [{"name": "qpack", "type": "file", "options": {"path": "/etc/grafana/dashboards"}}],
    }
    return {
        "compose.yaml": heading(export, use) + to_yaml(whole),
        "prometheus.yml": heading(export) + to_yaml(prometheus.configuration(export, f"vllm:{export.port}")),
        "rules.yml": heading(export) + to_yaml(prometheus.rules(export)),
        "grafana/datasource.yml": to_yaml(source),
        "grafana/dashboards.yml": to_yaml(provider),
        "grafana/dashboard.json": json.dumps(grafana.dashboard(export), indent=2) + "\n",
    }


# Isolated mode, with the address as an argument: no text of a manifest is code.
CHECK = ("python3", "-I", "-c", "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)")


def _server(export: Export) -> Document:
    path = model_path(export)
    probes = export.manifest.probes
    address = f"http://127.0.0.1:{export.port}{probes.health}"
    server: dict[str, Json] = {
        "image": quoting.compose(server_image(export)),
        "entrypoint": ["vllm", "serve"],
        "command": [quoting.compose(word) for word in serve(export, path)[2:]],
        "user": f"{UID}:{UID}",
        "init": True,
        **_SAFE,
        "tmpfs": ["/tmp:exec,mode=1777"],
        "shm_size": "4gb",
        "environment": [
            *(quoting.compose(f"{key}={value}") for key, value in sorted(container_environment(export).items())),
            *secrets(export),  # without a value: passed through from compose's environment if set
        ],
        "volumes": [
            {
                "type": "bind",
                "source": "${MODEL:?the model folder of the pulled release}",
                "target": path,
                "read_only": True,
            }
        ],
        "ports": [f"127.0.0.1:{export.port}:{export.port}"],
        "healthcheck": {
            "test": ["CMD", *CHECK, quoting.compose(address)],
            "interval": "15s",
            "timeout": "10s",
            "retries": 3,
            "start_period": f"{probes.startup_budget_seconds}s",
        },
        "restart": "unless-stopped",
    }
    if export.manifest.devices:
        gpus: Document = {"driver": "nvidia", "count": export.manifest.devices, "capabilities": ["gpu"]}
        server["deploy"] = {"resources": {"reservations": {"devices": [gpus]}}}
    return server


def _choosable(export: Export, image: str) -> str:
    """An image whose version a variable changes, unless it has a digest."""
    name, _, version = image.partition(":")
    variable = name.rpartition("/")[2].partition("-")[0].upper()
    return pinned(export, f"{name}:${{{variable}_VERSION:-{version}}}" if image not in export.pins else image)


def _prometheus(export: Export) -> Document:
    return {
        "image": _choosable(export, PROMETHEUS),
        "user": _PROMETHEUS_USER,
        **_SAFE,
        "volumes": [
            "./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "./rules.yml:/etc/prometheus/rules.yml:ro",
            "prometheus:/prometheus",
        ],
        "ports": ["127.0.0.1:9090:9090"],
        "restart": "unless-stopped",
    }


def _grafana(export: Export) -> Document:
    return {
        "image": _choosable(export, GRAFANA),
        "user": _GRAFANA_USER,
        **_SAFE,
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
        },
        "secrets": ["grafana"],
        "tmpfs": ["/tmp"],
        "volumes": [
            "./grafana/datasource.yml:/etc/grafana/provisioning/datasources/qpack.yml:ro",
            "./grafana/dashboards.yml:/etc/grafana/provisioning/dashboards/qpack.yml:ro",
            "./grafana/dashboard.json:/etc/grafana/dashboards/qpack.json:ro",
            "grafana:/var/lib/grafana",
        ],
        "ports": ["127.0.0.1:3000:3000"],
        "depends_on": ["prometheus"],
        "restart": "unless-stopped",
    }
