"""Two exports that together use every part of a manifest: a measured CPU server, and two GPUs with a draft model."""

from __future__ import annotations

from dataclasses import replace

import tests.unit.registry_examples as examples
from registry.serving import metrics, objectives
from registry.serving.exporters.export import Export, Facts, Host
from registry.serving.serving_manifest import DeviceMemory, Probes, Profile, ServingManifest, select

DIGEST = "sha256:" + "ab" * 32
FACTS = Facts(
    parameters=8_030_261_248, active_parameters=8_030_261_248, weights_bytes=5_700_000_000, experts=False,
    multimodal=False, method="gptq", scheme="W4A16", precision="gptq", hardware="NVIDIA H200", created="2026-11-30",
    base="example/small",
)  # fmt: skip
MEASURED = Host(cores=2, resident_bytes=2_984_400_000, weights_bytes=10**8, avx512=True)


def manifest() -> ServingManifest:
    """A manifest as a build publishes it."""
    latency = examples.release().artifact.latency
    gpus = Profile.model_validate(
        {
            "hardware": "hopper",
            "kv_cache_memory_bytes": 16 * 2**30,
            "arguments": {
                "tensor-parallel-size": 2,
                "enforce-eager": None,
                "speculative-config": {
                    "model": "example/draft",
                    "revision": "1" * 40,
                    "num_speculative_tokens": 3,
                },
                "enable-auto-tool-choice": True,
                "tool-call-parser": "hermes",
                "enable-prefix-caching": False,
            },
            "environment": {"HF_HUB_OFFLINE": "0", "NCCL_DEBUG": "WARN $HOME 100%"},
            "memory": {"basis": "estimated", "weights_bytes": 2**30, "kv_cache_bytes": 16 * 2**30},
        }
    )
    made = examples.serving().model_copy(
        update={
            "memory": DeviceMemory(
                basis="measured", weights_bytes=10**8, kv_cache_bytes=2**29, resident_bytes=2_984_400_000
            ),
            "profiles": {"two-gpus": gpus},
            "probes": Probes(startup_budget_seconds=600, measured_start_seconds=42.5),
            "objectives": objectives.from_latency(latency, server="vllm 0.32.0", hardware="two cores"),
        }
    )
    return made.model_copy(update={"metrics": metrics.contract(made)})


def export(profile: str | None = None, **more: object) -> Export:
    """The release's export for one profile."""
    data = {
        "manifest": select(manifest(), profile),
        "reference": "small-gptq:3",
        "digest": DIGEST,
        "profile": profile or "measured",
        "repository": "registry.example.com/models/small-gptq",
        "host": MEASURED if profile in (None, "measured") else Host(weights_bytes=10**8),
        **more,
    }
    return Export(**data)  # type: ignore[arg-type]


def export_to(form: str, profile: str | None = None) -> Export:
    """As `export`, for any format."""
    return fitted(form, export(profile))


def fitted(form: str, made: Export) -> Export:
    """An export that the format can hold: Ray has no way to write the dollar that one variable has, a LeaderWorkerSet
    needs GPUs on several nodes, and a recipe a repository on the Hub.
    """
    manifest = made.manifest
    if form == "leaderworkerset":
        if manifest.devices < 2:
            more = {"hardware": "hopper", "arguments": {**manifest.arguments, "tensor-parallel-size": 2}}
            manifest = manifest.model_copy(update=more)
        return replace(made, nodes=2, manifest=manifest)
    if form == "vllm-recipe":
        return replace(made, hub="example/small-GPTQ", facts=FACTS)
    if form != "ray":
        return made
    kept = {name: value for name, value in manifest.environment.items() if "$" not in value}
    return replace(made, manifest=manifest.model_copy(update={"environment": kept}))
