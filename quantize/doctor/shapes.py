"""Whether the tensors of a quantized layer have the shapes and types that its format asks for.

`weight_packed` int32 [out, in x bits / 32], `weight_scale` [out, groups], `weight_zero_point` int32 [out x bits / 32,
groups] (compressed-tensors); `qweight` int32 [in, out x bits / 32], `qzeros` int32 [groups, out x bits / 32], `scales`
[groups, out] (AWQ, GEMM); `qweight` int32 [in x bits / 32, out], the others the same (GPTQ).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from quantize.checkpoint.headers import Tensor
from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.decode import is_float, is_integer
from quantize.doctor.finding import Finding, some
from quantize.doctor.quantization_config import Claim, Claims

Fault = tuple[str, str, str]
"""Kind, part and what is wrong."""

_WEIGHT_TYPES = {"pack": {"I32"}, "awq": {"I32"}, "gptq": {"I32"}, "int": {"I8"}, "float": {"F8_E4M3"}}
_INDEX_TYPES = {"g_idx": ("I32", "I64"), "weight_g_idx": ("I32", "I64"), "qzeros": ("I32",)}
_SCALE_TYPES = {"F16", "BF16", "F32", "F8_E8M0"}


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Finding]:
    """Every quantized layer's tensors; layers with the same fault are told as one."""
    if claims is None or claims.unread:
        return []
    faults: dict[Fault, list[str]] = defaultdict(list)
    for name, layer in checkpoint.layers.items():
        claim = claims.of(layer) if layer.quantized else None
        if claim is not None:
            for fault in _faults(checkpoint, layer, claim):
                faults[fault].append(name)
    hint = "Its tensors don't fit its config: quantize again, or find the config that belongs to it."
    return [
        Finding("error", kind, f"{some(names)}: {what}", f"{names[0]}.{part}", hint)
        for (kind, part, what), names in faults.items()
    ]


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
        yield "stored-type", last, f"`{last}` is {weight.dtype}, and kernels take {' or '.join(sorted(wanted))}"
    for part in ("weight_scale", "weight_scale_inv", "scales", "input_scale"):
        if part in layer.parts and layer.parts[part].dtype not in _SCALE_TYPES:
            yield "stored-type", part, f"`{part}` is {layer.parts[part].dtype}, and has to be a float"
    for part, types in _INDEX_TYPES.items():
        if part in layer.parts and layer.parts[part].dtype not in types:
            yield "stored-type", part, f"`{part}` is {layer.parts[part].dtype}, and has to be {' or '.join(types)}"
    zero = layer.parts.get("weight_zero_point")
    if zero is not None and not (is_integer(zero.dtype) or (claim.form == "float" and is_float(zero.dtype))):
        yield "stored-type", "weight_zero_point", f"`weight_zero_point` is {zero.dtype}, and has to be whole numbers"


def _wrong(layer: Layer, kind: str, part: str, *allowed: tuple[int, ...]) -> Iterator[Fault]:
    if part in layer.parts and layer.parts[part].shape not in allowed:
        shape = list(layer.parts[part].shape)
        yield kind, part, f"`{part}` is {shape}, and should be {list(allowed[0])}"


def _rows(checkpoint: Checkpoint, layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    """compressed-tensors and FP8: rows are output channels."""
    rows, columns = weight.shape
    if claim.form == "pack":
        columns = columns * 32 // claim.bits
        told = checkpoint.shape_of(layer.name)
        if "weight_shape" in layer.parts and told is None:
            yield "packed-shape", "weight_shape", "`weight_shape` isn't two sizes"
            return
        if told is not None:
            packed = (told[0], -(-told[1] * claim.bits // 32))
            if packed != weight.shape:
                what = f"`weight_packed` is {list(weight.shape)}, and {list(told)} in {claim.bits} bits"
                yield "packed-shape", "weight_packed", f"{what} is {list(packed)}"
                return
            columns = told[1]
    if claim.group_size and columns % claim.group_size:
        what = f"groups of {claim.group_size} don't divide its {columns} input channels"
        yield "group-size", weight.name.rpartition(".")[2], what
    groups = claim.groups(columns)
    wanted: list[tuple[int, ...]] = [(rows, groups)]
    if claim.strategy == "channel":
        wanted.append((rows,))
    if claim.strategy == "tensor":
        wanted = [(1,), (), (1, 1)]
    if claim.block:
        wanted = [(-(-rows // claim.block[0]), -(-columns // claim.block[1]))]
    for part in ("weight_scale", "weight_scale_inv"):
        yield from _wrong(layer, "scale-shape", part, *wanted)
    packed_rows = -(-rows * claim.bits // 32)
    zeros = [(packed_rows, groups)] if claim.form == "pack" else wanted
    yield from _wrong(layer, "zero-point-shape", "weight_zero_point", *zeros)


def _awq(layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    columns, packed = weight.shape
    rows = packed * 32 // claim.bits
    if claim.group_size and columns % claim.group_size:
        yield "group-size", "qweight", f"groups of {claim.group_size} don't divide its {columns} input channels"
    scales = layer.parts.get("scales")
    if scales is not None and len(scales.shape) == 2 and rows != scales.shape[1] == columns:
        what = f"`qweight` is {list(weight.shape)}: packed for another kernel than GEMM, which servers read"
        yield "packed-shape", "qweight", what
        return
    groups = claim.groups(columns)
    yield from _wrong(layer, "scale-shape", "scales", (groups, rows))
    yield from _wrong(layer, "zero-point-shape", "qzeros", (groups, packed))


def _gptq(layer: Layer, claim: Claim, weight: Tensor) -> Iterator[Fault]:
    packed, rows = weight.shape
    columns = packed * 32 // claim.bits
    if claim.group_size and columns % claim.group_size:
        yield "group-size", "qweight", f"groups of {claim.group_size} don't divide its {columns} input channels"
    groups = claim.groups(columns)
    yield from _wrong(layer, "scale-shape", "scales", (groups, rows))
    yield from _wrong(layer, "zero-point-shape", "qzeros", (groups, rows * claim.bits // 32))
    yield from _wrong(layer, "group-index", "g_idx", (columns,))
