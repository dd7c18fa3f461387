"""A recipe of recipes.vllm.ai: `models/ORG/NAME.yaml` of vllm-project/recipes, for a release on the Hub.

https://github.com/vllm-project/recipes/blob/main/CONTRIBUTING.md
"""

from __future__ import annotations

import json
import math

from qpack.core.errors import invalid_option
from registry.core.documents import Json
from registry.serving.exporters.export import Export, Files, flags_without, heading, to_yaml

FILES = "`models/ORG/NAME.yaml` of vllm-project/recipes"
MODEL = "a repository on the Hub"
NEEDS_REPOSITORY = False
IMAGES: tuple[str, ...] = ()

_GB = 10**9
# Measured here, in the words of the recipes' taxonomy. A model's name of a GPU has its memory and form factor.
_GPUS = ("h100", "h200", "b200", "gb200", "b300", "gb300")
_FEATURES = {
    "tool_calling": ("enable-auto-tool-choice", "tool-call-parser"),
    "reasoning": ("reasoning-parser",),
    "spec_decoding": ("speculative-config",),
}


def files(export: Export) -> Files:
    """The recipe. Raises RecipeError for a release that isn't on the Hub: the repository's name is the file's."""
    if export.hub is None or export.facts is None:
        raise invalid_option(
            "--hub",
            "a vLLM recipe is of a model on the Hub, and none is named",
            "Publish it (`qpack publish REF --to hf://ORG/NAME`) and pass --hub ORG/NAME.",
        )
    manifest, facts = export.manifest, export.facts
    repository = export.hub.partition("@")[0]
    owner, _, title = repository.partition("/")
    used = {flag for flags in _FEATURES.values() for flag in flags}
    base = flags_without(export, "served-model-name", "host", "port", "tensor-parallel-size", *used)
    features: dict[str, Json] = {}
    for name, flags in _FEATURES.items():
        if any(flag in manifest.arguments for flag in flags):
            others = {flag for other in _FEATURES.values() for flag in other} - set(flags)
            common = {word.partition("=")[0] for word in base}
            own = flags_without(export, "served-model-name", "host", "port", "tensor-parallel-size", *others)
            args = [part for word in own if word.partition("=")[0] not in common for part in _apart(word)]
            features[name] = {"description": _SAID[name], "args": list(args)}
    # Weights and the KV cache that was served, and a fifth for what computes.
    least = math.ceil(1.2 * (facts.weights_bytes + (manifest.kv_cache_memory_bytes or 0) * manifest.workers) / _GB)
    tested = next((gpu for gpu in reversed(_GPUS) if gpu in facts.hardware.lower().split()), None)
    recipe: dict[str, Json] = {
        "meta": {
            "title": title,
            "slug": title.lower(),
            "provider": owner,
            "description": f"{facts.base or title} in {facts.scheme} ({facts.method}), measured by qpack.",
            "date_added": facts.created,
            "date_updated": facts.created,
            "difficulty": "beginner",
            "tasks": ["multimodal" if facts.multimodal else "text"],
            "related_recipes": [facts.base] if facts.base else [],
            **({"hardware": {tested: "verified"}} if tested else {}),
        },
        "model": {
            "model_id": repository,
            "min_vllm_version": manifest.engine.version.partition("+")[0],
            "architecture": "moe" if facts.experts else "dense",
            "parameter_count": _billions(facts.parameters),
            "active_parameters": _billions(facts.active_parameters),
            "context_length": manifest.max_model_len,
            "base_args": [part for word in base for part in _apart(word)],
            "base_env": {key: value for key, value in manifest.environment.items() if "OFFLINE" not in key},
        },
        "features": features,
        "opt_in_features": [],
        "variants": {
            "default": {
                "precision": facts.precision,
                "vram_minimum_gb": least,
                "description": f"{facts.scheme}, as measured",
            }
        },
        "compatible_strategies": ["single_node_tp", *(["single_node_tep"] if facts.experts else [])],
        "hardware_overrides": {},
        "strategy_overrides": {"single_node_tp": {"tp": manifest.tensor_parallel}},
        "guide": _guide(export, repository),
    }
    return {f"models/{repository}.yaml": heading(export) + to_yaml(recipe)}


_SAID = {
    "tool_calling": "Tools, called by the model",
    "reasoning": "Reasoning apart from the answer",
    "spec_decoding": "Speculative decoding",
}


def _billions(parameters: int) -> str:
    return f"{parameters / _GB:.3g}B"


def _apart(word: str) -> list[str]:
    """`--flag=value` as the recipes write it: two words."""
    flag, equals, value = word.partition("=")
    return [flag, value] if equals else [flag]


def _guide(export: Export, repository: str) -> str:
    manifest = export.manifest
    serve = json.dumps(manifest.tensor_parallel)
    return (
        f"## Overview\n\n{repository} as it was measured. The repository has evidence, gates and serving manifest.\n\n"
        f"## Launching the Server\n\n```bash\nvllm serve {repository} --tensor-parallel-size {serve}\n```\n\n"
        f"## References\n\n- [Model card](https://huggingface.co/{repository})\n"
    )
