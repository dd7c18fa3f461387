"""The export formats by name. To add one: a module, and one line here."""

from __future__ import annotations

from registry.serving.exporters import compose, docker, grafana, kserve, kubernetes, prometheus, ray, systemd, vllm
from registry.serving.exporters.export import Exporter

FORMATS: dict[str, Exporter] = {
    "vllm": vllm,
    "docker": docker,
    "compose": compose,
    "kubernetes": kubernetes,
    "kserve": kserve,
    "ray": ray,
    "systemd": systemd,
    "prometheus": prometheus,
    "grafana": grafana,
}
