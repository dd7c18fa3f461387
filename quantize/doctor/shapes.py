"""Whether the tensors of a quantized layer have the shapes and types that its format asks for.

`weight_packed` int32 [out, in x bits / 32], `weight_scale` [out, groups], `weight_zero_point` int32 [out x bits / 32,
groups] (compressed-tensors); FP4 as `weight_packed` uint8 [out, in / 2] (in Model-Optimizer's checkpoints `weight`),
`weight_scale` E4M3 [out, in / 16] with one global scale (NVFP4), or exponents in uint8 [out, in / 32] (MX); `qweight`
int32 [in, out x bits / 32], `qzeros` int32 [groups, out x bits / 32], `scales` [groups, out] (AWQ, GEMM); `qweight`
int32 [in x bits / 32, out], the others the same (GPTQ).
"""

from __future__ import annotations

from collections.abc import Iterator

from qpack.core.model_shapes import uneven_groups
from qpack.core.problems import Code, Location, Problem, of_layers
from quantize.checkpoint.headers import Tensor
from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.decode import is_float, is_integer
from quantize.doctor.quantization_config import Claim, Claims

_TYPE = Code("stored-type", "A tensor has a type that kernels don't support.")
_PACKED = Code("packed-shape", "A packed weight doesn't fit its shape, or is packed for another kernel.")
_SCALE = Code("scale-shape", "Scales don't fit the weight and the group size.")
_ZERO_POINT = Code("zero-point-shape", "Zero points don't fit.")
_GROUP_INDEX = Code("group-index-shape", "GPTQ's `g_idx` doesn't fit the input channels.")
_HINT = "Tensors and config don't match: quantize again, or restore the config that belongs to them."

Fault = tuple[str, Problem]
"""A part of a layer, and what is wrong with it."""

_WEIGHT_TYPES = {"pack": {"I32"}, "awq": {"I32"}, "gptq": {"I32"}, "int": {"I8"}, "float": {"F8_E4M3"},
                 "fp4": {"U8"}}  # fmt: skip
_INDEX_TYPES = {"g_idx": ("I32", "I64"), "weight_g_idx": ("I32", "I64"), "qzeros": ("I32",)}
_SCALE_TYPES = {"F16", "BF16", "F32", "F8_E8M0"}
_EXPONENT_TYPES = {"U8", "F8_E8M0"}
_SCALES = ("weight_scale", "weight_scale_inv", "scales")
_OF_TENSORS = ("weight_global_scale", "weight_scale_2", "input_scale", "input_global_scale")


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Problem]:
    """Every quantized layer's tensors; layers with the same problem are reported as one."""
    if claims is None or claims.unread:
        return []
    return of_layers(
        (name, *fault)
        for name, layer in checkpoint.layers.items()
        if layer.quantized and (claim := claims.of(layer)) is not None
        for fault in _faults(checkpoint, layer, claim)
    )


def _faults(checkpoint: Checkpoint, layer: Layer, claim: Claim) -> Iterator[Fault]:
    weight = _weight(layer)
    yield from _types(layer, claim, weight)
    if len(weight.shape) != 2:
        return  # experts of one tensor: their layout is the model's own
    if claim.form == "awq":
        yield from _awq(layer, claim, weight)
    elif claim.form == "gptq":
        yield from _gptq(layer, claim, weight)
    else:
        yield from _rows(checkpoint, layer, claim, weight)


def _weight(layer: Layer) -> Tensor:
    return next(layer.parts[part] for part in ("weight_packed", "qweight", "weight") if part in layer.parts)


def _types(layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    last = weight.name.rpartition(".")[2]
    wanted = _WEIGHT_TYPES[claim.form]
    if weight.dtype not in wanted:
        yield (
            last,
            Problem(_TYPE, f"`{last}` is {weight.dtype}, and kernels need {' or '.join(sorted(wanted))}", hint=_HINT),
        )
    scales, kind = _SCALE_TYPES, "a float"
    if claim.exponents:
        scales, kind = _EXPONENT_TYPES, "exponents in one byte (uint8)"
    if claim.global_scale:
        scales, kind = {"F8_E4M3"}, "F8_E4M3"
    asked = [(part, scales, kind) for part in _SCALES] + [(part, _SCALE_TYPES, "a float") for part in _OF_TENSORS]
    for part, allowed, kind in asked:
        if part in layer.parts and layer.parts[part].dtype not in allowed:
            yield part, Problem(_TYPE, f"`{part}` is {layer.parts[part].dtype}, and has to be {kind}", hint=_HINT)
    for part, types in _INDEX_TYPES.items():
        if part in layer.parts and layer.parts[part].dtype not in types:
            yield (
                part,
                Problem(
                    _TYPE, f"`{part}` is {layer.parts[part].dtype}, but has to be {' or '.join(types)}", hint=_HINT
                ),
            )
    zero = layer.parts.get("weight_zero_point")
    if zero is not None and not (is_integer(zero.dtype) or (claim.form == "float" and is_float(zero.dtype))):
        yield (
            "weight_zero_point",
            Problem(_TYPE, f"`weight_zero_point` is {zero.dtype}, but has to be an integer type", hint=_HINT),
        )


def _wrong(layer: Layer, code: Code, part: str, *allowed: tuple[int, ...]) -> Iterator[Fault]:
    if part in layer.parts and layer.parts[part].shape not in allowed:
        shape = list(layer.parts[part].shape)
        yield part, Problem(code, f"`{part}` is {shape}, expected {list(allowed[0])}", hint=_HINT)


def _groups(claim: Claim, columns: int, part: str) -> Iterator[Fault]:
    if claim.group_size:
        yield from ((part, problem) for problem in uneven_groups(claim.group_size, columns, Location(), _HINT))


def _rows(checkpoint: Checkpoint, layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    """compressed-tensors and FP8: rows are output channels."""
    rows, columns = weight.shape
    if claim.form == "pack":
        columns = columns * 32 // claim.bits
        told = checkpoint.shape_of(layer.name)
        if "weight_shape" in layer.parts and told is None:
            yield "weight_shape", Problem(_PACKED, "`weight_shape` isn't two sizes", hint=_HINT)
            return
        if told is not None:
            packed = (told[0], -(-told[1] * claim.bits // 32))
            if packed != weight.shape:
                what = f"`weight_packed` is {list(weight.shape)}, and {list(told)} in {claim.bits} bits"
                yield "weight_packed", Problem(_PACKED, f"{what} is {list(packed)}", hint=_HINT)
                return
            columns = told[1]
    if claim.form == "fp4":
        columns *= 2
    yield from _groups(claim, columns, weight.name.rpartition(".")[2])
    if claim.global_scale:
        yield from _wrong(layer, _SCALE, claim.global_scale, (1,), ())
    groups = claim.groups(columns)
    wanted: list[tuple[int, ...]] = [(rows, groups)]
    if claim.strategy == "channel":
        wanted.append((rows,))
    if claim.strategy == "tensor":
        wanted = [(1,), (), (1, 1)]
    if claim.block:
        wanted = [(-(-rows // claim.block[0]), -(-columns // claim.block[1]))]
    for part in ("weight_scale", "weight_scale_inv"):
        yield from _wrong(layer, _SCALE, part, *wanted)
    packed_rows = -(-rows * claim.bits // 32)
    zeros = [(packed_rows, groups)] if claim.form == "pack" else wanted
    yield from _wrong(layer, _ZERO_POINT, "weight_zero_point", *zeros)


def _awq(layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    columns, packed = weight.shape
    rows = packed * 32 // claim.bits
    yield from _groups(claim, columns, "qweight")
    scales = layer.parts.get("scales")
    if scales is not None and len(scales.shape) == 2 and rows != scales.shape[1] == columns:
        what = f"`qweight` is {list(weight.shape)}: not packed for GEMM, the layout that servers read"
        yield "qweight", Problem(_PACKED, what, hint=_HINT)
        return
    groups = claim.groups(columns)
    yield from _wrong(layer, _SCALE, "scales", (groups, rows))
    yield from _wrong(layer, _ZERO_POINT, "qzeros", (groups, packed))


def _gptq(layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    packed, rows = weight.shape
    columns = packed * 32 // claim.bits
    yield from _groups(claim, columns, "qweight")
    groups = claim.groups(columns)
    yield from _wrong(layer, _SCALE, "scales", (groups, rows))
    yield from _wrong(layer, _ZERO_POINT, "qzeros", (groups, rows * claim.bits // 32))
    yield from _wrong(layer, _GROUP_INDEX, "g_idx", (columns,))
