"""Models that can't be released whatever the scheme: vLLM doesn't serve them, or they generate no text."""

from __future__ import annotations

from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import layer_roles
from quantize.checkpoint.source import Source
from quantize.schemes import kernels, vllm_models
from quantize.schemes.schemes import AS_IT_IS

_NOT_SERVED = Code("model-not-served", "vLLM doesn't serve the model's architecture, or not on the target.")
_NO_GENERATION = Code("no-text-generation", "The model generates no text, or has an encoder: its evals can't run.")

_QUANTIZED_ALREADY = Code("quantized-already", "The source is quantized already.")

_SOURCE = Location(key=("model", "source"))


def quantized_already(source: Source, method: str) -> list[Problem]:
    """A source that is quantized, and isn't unpacked, can be released as it is; it is no start for another scheme."""
    if source.quantization is None or method == "none":
        return []
    what = f"is quantized already ({source.quantization})"
    hint = f"Start from the model that it was made from, or release it as it is: `method: none`, `scheme: {AS_IT_IS}`."
    return [Problem(_QUANTIZED_ALREADY, what, _SOURCE, hint)]


def check(source: Source, target: str, *, own_vllm: bool) -> list[Problem]:
    """By the architecture that the config names. `own_vllm`: the recipe names an environment of its own for vLLM, whose
    release and packages aren't known.
    """
    names = source.config.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    kind = source.config.get("model_type")
    if source.config.get("is_encoder_decoder"):
        what = f"'{kind}' is an encoder-decoder, and qpack quantizes and measures decoders"
        return [Problem(_NO_GENERATION, what, _SOURCE, "Name a decoder that generates text.")]
    if names and all(map(vllm_models.pools, names)):
        what = f"{names[0]} gives embeddings or classes, and qpack measures generated text"
        return [Problem(_NO_GENERATION, what, _SOURCE, "Name a model for text generation (`...ForCausalLM`).")]
    if own_vllm:
        return []
    dropped = next((name for name in names if name in vllm_models.DROPPED), None)
    if dropped:
        what = (
            f"vLLM {kernels.VLLM} doesn't serve {dropped}; {vllm_models.DROPPED[dropped]} was the last release that did"
        )
        hint = "Name an environment that has that release: `environments: {vllm: .../bin/python}`."
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    reads = any(each.role is layer_roles.Role.ENCODER for each in source.roles)
    if target == "cpu" and reads:
        what = "the model reads images or audio, and vLLM's environment for CPUs lacks torchvision, which prepares them"
        hint = "Set serve.target to a GPU, or name an environment that has it: `environments: {vllm: .../bin/python}`."
        return [Problem(_NOT_SERVED, what, _SOURCE, hint)]
    return []
