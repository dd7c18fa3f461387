"""Dequantized weights of a layer at some rows and columns, from every supported format.

Sources: compressed-tensors' pack, int, float, NVFP4 and MX compressors; Model-Optimizer's checkpoints as vLLM reads
them; AutoAWQ's GEMM layout; AutoGPTQ's layout in both formats of zero points (`shapes` has the tensors' shapes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.decode import E2M1, Floats, Integers
from quantize.doctor.quantization_config import CT_GLOBAL, Claim

Index = NDArray[np.intp]

# Where each of eight output channels lies in AWQ's words, from the lowest bits.
_AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])


def weights(checkpoint: Checkpoint, layer: Layer, claim: Claim | None, rows: Index, columns: Index) -> Floats:
    """Output channels `rows` of input channels `columns`: float32 [len(rows), len(columns)].

    `claim` None is a layer that isn't quantized. The layer's tensors have the shapes that its format asks for.
    """
    if claim is None:
        return checkpoint.floats_at(f"{layer.name}.weight", rows, columns)
    steps, scale = stepped(checkpoint, layer, claim, rows, columns)
    return steps * scale


def stepped(checkpoint: Checkpoint, layer: Layer, claim: Claim, rows: Index, columns: Index) -> tuple[Floats, Floats]:
    """Integer values minus zero points, and scales, each [len(rows), len(columns)]; their product is the weight."""
    name, bits = layer.name, claim.bits
    groups = _groups(checkpoint, layer, claim, columns)
    if claim.form in ("awq", "gptq"):
        scale = checkpoint.floats_at(f"{name}.scales", groups, rows).T
        if claim.form == "awq":
            awq = _Packing(bits, axis=1, places=_AWQ_PLACES)
            codes = _unpack(checkpoint, f"{name}.qweight", columns, rows, awq).T
            zeros = _unpack(checkpoint, f"{name}.qzeros", groups, rows, awq).T
        else:
            codes = _unpack(checkpoint, f"{name}.qweight", columns, rows, _Packing(bits, axis=0)).T
            zeros = _unpack(checkpoint, f"{name}.qzeros", groups, rows, _Packing(bits, axis=1)).T
            if (checkpoint.quantization or {}).get("checkpoint_format") != "gptq_v2":
                zeros = zeros + 1
        return (codes - zeros).astype(np.float32), scale
    scale = _scale(checkpoint, layer, claim, rows, groups, columns)
    if claim.form == "pack":
        codes = _unpack(checkpoint, f"{name}.weight_packed", rows, columns, _Packing(bits, axis=1))
        zeros = np.array(1 << (bits - 1))
        if "weight_zero_point" in layer.parts:
            zeros = _unpack(checkpoint, f"{name}.weight_zero_point", rows, groups, _Packing(bits, axis=0))
        return (codes - zeros).astype(np.float32), scale
    if claim.form == "float":
        return checkpoint.floats_at(f"{name}.weight", rows, columns), scale
    if claim.form == "fp4":
        return E2M1[_unpack(checkpoint, f"{name}.{claim.weight}", rows, columns, _Packing(bits, axis=1, word=8))], scale
    codes = checkpoint.integers_at(f"{name}.weight", rows, columns)
    zero = layer.parts.get("weight_zero_point")
    if zero is not None and len(zero.shape) == 2:
        codes = codes - checkpoint.integers_at(zero.name, rows, groups)
    return codes.astype(np.float32), scale


def _groups(checkpoint: Checkpoint, layer: Layer, claim: Claim, columns: Index) -> Index:
    """The group of each input channel."""
    for part in ("g_idx", "weight_g_idx"):
        if part in layer.parts:
            return checkpoint.integers_at(layer.parts[part].name, columns).astype(np.intp)
    return columns // claim.group_size if claim.group_size else np.zeros_like(columns)


def _scale(checkpoint: Checkpoint, layer: Layer, claim: Claim, rows: Index, groups: Index, columns: Index) -> Floats:
    """Scales of compressed-tensors and FP8, [rows, columns] or such that they broadcast to it."""
    tensor = next(layer.parts[part] for part in ("weight_scale", "weight_scale_inv") if part in layer.parts)
    if claim.exponents:
        return checkpoint.floats_at(tensor.name, rows, groups, dtype="F8_E8M0")
    if claim.global_scale:
        shared = checkpoint.floats(f"{layer.name}.{claim.global_scale}")
        with np.errstate(divide="ignore"):  # another finding
            factor = np.float32(1) / shared[:1] if claim.global_scale == CT_GLOBAL else shared[:1]
        found: Floats = checkpoint.floats_at(tensor.name, rows, groups) * factor.astype(np.float32)
        return found
    if claim.block:
        return checkpoint.floats_at(tensor.name, rows // claim.block[0], columns // claim.block[1])
    if tensor.elements == 1:
        return checkpoint.floats(tensor.name)
    if len(tensor.shape) == 1:
        return checkpoint.floats_at(tensor.name, rows)[:, None]
    return checkpoint.floats_at(tensor.name, rows, groups)


@dataclass(frozen=True)
class _Packing:
    """How values of `bits` bits are packed into words of `word` bits: along `axis`, lowest bits first. `places` is the
    position of each value within its word, where they aren't in order.
    """

    bits: int
    axis: int
    places: Index | None = None
    word: int = 32


def _unpack(checkpoint: Checkpoint, name: str, first: Index, second: Index, packing: _Packing) -> Integers:
    """Values [len(first), len(second)] of a packed matrix."""
    per_word = packing.word // packing.bits
    packed = (first, second)[packing.axis]
    word, place = packed // per_word, packed % per_word
    if packing.places is not None:
        place = packing.places[place]
    found = checkpoint.integers_at(name, *((word, second) if packing.axis == 0 else (first, word)))
    shift = place * packing.bits
    return (found >> (shift[:, None] if packing.axis == 0 else shift)) & ((1 << packing.bits) - 1)
