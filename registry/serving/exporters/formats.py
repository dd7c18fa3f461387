"""The export formats by name. To add one: a module, and one line here."""

from __future__ import annotations

from registry.serving.exporters import (
    compose,
    docker,
    dockerfile,
    grafana,
    kserve,
    kubernetes,
    leaderworkerset,
    llmd,
    production_stack,
    prometheus,
    ray,
    skypilot,
    systemd,
    vllm,
    vllm_recipe,
)
from registry.serving.exporters.export import Exporter

FORMATS: dict[str, Exporter] = {
    "vllm": vllm,
    "docker": docker,
    "dockerfile": dockerfile,
    "compose": compose,
    "kubernetes": kubernetes,
    "leaderworkerset": leaderworkerset,
    "kserve": kserve,
    "llm-d": llmd,
    "production-stack": production_stack,
    "ray": ray,
    "skypilot": skypilot,
    "systemd": systemd,
    "vllm-recipe": vllm_recipe,
    "prometheus": prometheus,
    "grafana": grafana,
}
