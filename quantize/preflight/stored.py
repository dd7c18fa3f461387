"""Layers by the scheme that they are served in: the recipe's, or of a source that is released as it is, its own.

The latter (`scheme: SOURCE`) is read as the doctor reads quantization configs, from headers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.checkpoint import layer_names
from quantize.checkpoint.headers import Span, Tensor
from quantize.checkpoint.layer_groups import kinds
from quantize.checkpoint.model_config import ModelConfig
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Override, Request
from quantize.preflight import overrides
from quantize.preflight.overrides import Part
from quantize.schemes.schemes import AS_IT_IS

if TYPE_CHECKING:
    from quantize.doctor.checkpoint import Layer
    from quantize.doctor.quantization_config import Claim

_INTEGERS = {
    ("", 4, True): "W4A16",
    ("", 4, False): "W4A16_ASYM",
    ("", 8, True): "W8A16",
    ("", 8, False): "W8A16_ASYM",
    ("int8_token", 8, True): "W8A8",
    ("int8_zero_point", 4, True): "W4A8",
    ("fp8_token", 4, True): "W4AFP8",
}
_FLOATS = {"fp8_token": "FP8_DYNAMIC", "fp8_block": "FP8_BLOCK", "fp8_tensor": "FP8", "mxfp8": "MXFP8"}
_FP4 = {("nvfp4", 16): "NVFP4", ("", 16): "NVFP4A16", ("mxfp4", 32): "MXFP4", ("", 32): "MXFP4A16"}
_GPT_OSS = "MXFP4A16"


def scheme_of(claim: Claim) -> str:
    """The scheme that a layer is stored in; empty if it is none that qpack knows."""
    if claim.form == "fp4":
        return _FP4.get((claim.inputs, claim.group_size or 0), "")
    if claim.form == "float":
        one = claim.strategy == "tensor" and claim.inputs == "fp8_token"
        return "FP8_TENSOR" if one else _FLOATS.get(claim.inputs, "") if claim.bits == 8 else ""
    return _INTEGERS.get((claim.inputs, claim.bits, claim.symmetric), "")


def parts(request: Request, source: Source) -> list[Part]:
    """The quantized layers by scheme, with a request for each."""
    return own(request, source) or overrides.by_scheme(request, source.split(request.ignore)[0])


def own(request: Request, source: Source) -> list[Part]:
    """The same of a quantized source that is released as it is, with the layers' shapes before packing; empty for any
    other, and for a format that isn't looked into.
    """
    if request.method != "none" or source.quantization is None or not source.tensors:
        return []
    # numpy, and few plans need it.
    from quantize.doctor import quantization_config
    from quantize.doctor.checkpoint import Checkpoint
    from quantize.emulate import dense

    spans = {tensor.name: Span(tensor, 0, 0) for tensor in source.tensors}
    found = Checkpoint(source.path or Path(), dict(source.config), spans, {}, {}, frozenset(), 0)
    claims = quantization_config.read(found)
    if claims is not None and claims.method == dense.MXFP4:
        return _experts(request, source)
    if claims is None or claims.unread:
        return []
    stored: dict[tuple[str, int | None], list[Tensor]] = {}
    for layer in found.layers.values():
        claim = claims.of(layer) if layer.quantized else None
        name = scheme_of(claim) if claim else ""
        if claim is None or not name:
            continue
        group = claim.group_size if claim.form in ("pack", "int", "awq", "gptq") else None
        for shape in _shape(layer, claim):
            stored.setdefault((name, group), []).append(Tensor(f"{layer.name}.weight", "BF16", shape))
    return [
        Part(replace(request, scheme=name, group_size=group, overrides=()), kinds(tensors))
        for (name, group), tensors in stored.items()
    ]


def _experts(request: Request, source: Source) -> list[Part]:
    """Of gpt-oss: every expert's matrices, whose weights alone are in MXFP4."""
    from quantize.emulate import dense

    made = dense.of(source)
    experts = [tensor for tensor in made.linears if layer_names.is_expert(tensor.name)] if made else []
    asked = replace(request, scheme=_GPT_OSS, group_size=None, overrides=())
    return [Part(asked, kinds(experts))] if experts else []


def schemes(config: ModelConfig) -> tuple[str, ...]:
    """The schemes that a quantized model is stored in, by its config alone; empty where that isn't looked into."""
    from quantize.doctor import quantization_config
    from quantize.doctor.checkpoint import Checkpoint
    from quantize.emulate import dense

    claims = quantization_config.read(Checkpoint(Path(), dict(config), {}, {}, {}, frozenset(), 0))
    if claims is not None and claims.method == dense.MXFP4:
        return (_GPT_OSS,)
    found = () if claims is None or claims.unread else claims.groups
    return tuple(dict.fromkeys(name for _, claim in found if (name := scheme_of(claim))))


def as_stored(request: Request, found: Sequence[str]) -> Request:
    """The request for a source as it is, with the schemes that it is stored in: it needs their kernels."""
    if request.scheme != AS_IT_IS or not found:
        return request
    return replace(request, scheme=found[0], overrides=tuple(Override("", name, None) for name in found[1:]))


def _shape(layer: Layer, claim: Claim) -> Iterator[tuple[int, int]]:
    """[out, in] before packing; nothing for experts in one tensor."""
    stored = layer.parts.get(claim.weight)
    if stored is None or len(stored.shape) != 2:
        return
    first, second = stored.shape
    each = 32 // claim.bits
    if claim.form == "awq":
        yield second * each, first
    elif claim.form == "gptq":
        yield second, first * each
    elif claim.form == "pack":
        yield first, second * each
    else:
        yield first, second * (2 if claim.form == "fp4" else 1)
