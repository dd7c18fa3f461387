"""A release of a small model in a registry, without a build: what is served is real, its evidence is an example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tests.unit.registry_examples as examples
from evals.server import flags
from qpack.core.hashing import digest_tree
from qpack.pipeline.planned_serving import COMPACT_JSON, STRUCTURED
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
from registry.release import release_folder
from registry.serving import metrics, objectives, trust
from registry.serving.serving_manifest import (
    Probes,
    Profile,
    ServedModel,
    ServingEngine,
    ServingManifest,
    version_range,
)


def manifest(digest: str, version: str) -> ServingManifest:
    """A small server on the CPU. Its profiles: `narrow` differs in an argument and a variable, `gone` has flags that
    older vLLM had, `named` those that replace them and those that a release may set without leave, `misread` has
    parsers that no vLLM has, `two-gpus` needs what is not here, `two-workers` cuts the layers in two on this CPU.
    """
    instead = {text.replace(",", ":").partition(":")[0] for text in flags.REPLACED.values()} - {"speculative-config"}
    made = ServingManifest(
        model=ServedModel(name="small", digest=digest, served_model_name="small"),
        engine=ServingEngine(version=version, versions=version_range(version)),
        hardware="cpu",
        dtype="bfloat16",
        max_model_len=512,
        kv_cache_memory_bytes=2**27,
        arguments={
            "enforce-eager": True,
            "max-num-seqs": 4,
            "speculative-config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3},
            "enable-auto-tool-choice": True,
            "tool-call-parser": "hermes",
            STRUCTURED: COMPACT_JSON,
        },
        # Two servers on one machine would else share one core.
        environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        profiles={
            "narrow": Profile(arguments={"max-num-seqs": 2}, environment={"VLLM_CPU_OMP_THREADS_BIND": "auto"}),
            "gone": Profile(arguments=dict.fromkeys((*flags.REPLACED, *flags.REMOVED), "x")),
            "named": Profile(
                arguments={**dict.fromkeys(trust.FLAGS - {"speculative-config"}, 1), **dict.fromkeys(instead, "x")}
            ),
            "misread": Profile(arguments={"tool-call-parser": "hermess", "reasoning-parser": "qwen33"}),
            "two-gpus": Profile(hardware="hopper", arguments={"tensor-parallel-size": 4}),
            "two-workers": Profile(
                kv_cache_memory_bytes=2**30,
                arguments={
                    "tensor-parallel-size": 2,
                    "speculative-config": None,
                    "enable-auto-tool-choice": None,
                    "tool-call-parser": None,
                },
            ),
        },
        probes=Probes(startup_budget_seconds=300),
        objectives=objectives.from_latency(examples.release().artifact.latency, server="vllm", hardware="an example"),
    )
    return made.model_copy(update={"metrics": metrics.contract(made)})


def publish(
    model: Path, registry: Path, scratch: Path, version: str, said: Mapping[str, Any] | None = None
) -> ServingManifest:
    """Push `small:1` into the local registry at `registry`; `version` is the vLLM's. `said` is laid over serving.json
    as it is, whatever it holds: a release can be a stranger's.
    """
    files, digest = digest_tree(model)
    weights = sum(record.size_bytes for record in files if record.path.endswith(".safetensors"))
    example = examples.release()
    # The model is served as it is.
    made = {"files": files, "digest": digest, "weights_bytes": weights, "method": "none", "scheme": "BF16"}
    quantized = example.quantized.model_copy(update={**made, "group_size": None, "format": None})
    about = example.artifact.model_copy(update={"model_digest": digest})
    release = example.model_copy(update={"name": "small", "quantized": quantized, "artifact": about})
    serving = manifest(digest, version)
    folder = scratch / "release"
    folder.mkdir(parents=True)
    release_folder.lay_out(folder, checkpoint=model, source=model, release=release, serving=serving)
    if said is not None:
        (folder / "serving.json").write_text(json.dumps({**json.loads(serving.to_json()), **said}))
    notes = release_folder.oci_annotations(release)
    LocalRegistry(registry).push(folder, PushRequest("small", "1", "latest", actor="test"), annotations=notes)
    return serving
