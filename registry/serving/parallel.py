"""A model on several devices: each one's share of the weights, and shapes that they can't share. Pure.

vLLM's tensor parallel workers share each layer, pipeline groups have some layers each, data parallel copies have the
whole model but share the experts of a mixture of experts.

https://docs.vllm.ai/en/stable/serving/data_parallel_deployment/,
https://docs.vllm.ai/en/stable/serving/expert_parallel_deployment/
"""

from __future__ import annotations

from qpack.core import model_shapes
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Location, Problem
from registry.serving.serving_manifest import ServingManifest

TENSOR, DATA, EXPERT = "tensor-parallel-size", "data-parallel-size", "enable-expert-parallel"


def _at(flag: str) -> Location:
    return Location(key=("arguments", flag))


def weights_share(manifest: ServingManifest, config: JsonObject) -> float:
    """The share of the weights on one device: of a GPU, or of the host for a CPU, whose workers are all on it."""
    routed = model_shapes.expert_share(model_shapes.language_model(config))
    copies = manifest.data_parallel
    if manifest.hardware == "cpu":
        return (1 - routed) * copies + routed
    return ((1 - routed) + routed / copies) / (manifest.tensor_parallel * manifest.pipeline_parallel)


def cache_share(manifest: ServingManifest) -> int:
    """KV caches on one device: every worker has its own."""
    return manifest.workers if manifest.hardware == "cpu" else 1


def check(manifest: ServingManifest, config: JsonObject, group: int | None) -> list[Problem]:
    """Shapes that the devices of one profile can't share. `group` is the group size of quantized weights, if any."""
    tensor, text = manifest.tensor_parallel, model_shapes.language_model(config)
    problems = model_shapes.unshared_heads(text, tensor, _at(TENSOR))
    for channels, parts in _feed_forward(manifest, text):
        if parts == tensor:
            problems += _channels(channels, parts, group, _at(TENSOR))
    return problems + check_copies(manifest, config, group)


def check_copies(manifest: ServingManifest, config: JsonObject, group: int | None) -> list[Problem]:
    """Of `check`, what comes from data and expert parallelism."""
    tensor, data, text = manifest.tensor_parallel, manifest.data_parallel, model_shapes.language_model(config)
    problems: list[Problem] = []
    for channels, parts in _feed_forward(manifest, text):
        if parts != tensor:
            problems += _channels(channels, parts, group, _at(DATA))
    if manifest.arguments.get(EXPERT) is True:
        problems += model_shapes.unspread_experts(text, tensor * data, _at(EXPERT))
    return problems


def _feed_forward(manifest: ServingManifest, text: JsonObject) -> list[tuple[int, int]]:
    whole = manifest.arguments.get(EXPERT) is True
    return model_shapes.feed_forward(text, manifest.tensor_parallel, manifest.data_parallel, whole_experts=whole)


def check_draft(config: JsonObject, group: int | None, parts: int, where: Location) -> list[Problem]:
    """Shapes of a draft model that `parts` devices can't share."""
    text = model_shapes.language_model(config)
    problems = model_shapes.unshared_heads(text, parts, where)
    for channels, shared in model_shapes.feed_forward(text, parts, 1, whole_experts=False):
        problems += _channels(channels, shared, group, where)
    return problems


def _channels(channels: int, parts: int, group: int | None, where: Location) -> list[Problem]:
    uneven = model_shapes.unshared_channels(channels, parts, where)
    return uneven or (model_shapes.split_groups(group, channels, parts, where) if group else [])
