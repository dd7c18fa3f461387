"""Whether scales, zero points and group indices have plausible values, in a sample of every tensor."""

from __future__ import annotations

import numpy as np

from qpack.core.problems import Code, Problem, of_layers
from quantize.doctor import decode
from quantize.doctor.checkpoint import Checkpoint, Layer
from quantize.doctor.quantization_config import Claim, Claims

_SCALES = ("weight_scale", "weight_scale_inv", "scales", "input_scale", "weight_global_scale", "weight_scale_2",
           "input_global_scale")  # fmt: skip
_AGAIN = "Quantize again: calibration never reached this layer, or the values overflowed their type."
# Up to this share of a tensor, zero scales can come from groups of weights that are all zero.
_MANY = 0.01

_NOT_FINITE = Code("scale-not-finite", "NaN or infinite scales.")
_ZERO = Code("scale-zero", "Scales of zero: many are an error, a few are a warning.")
_NEGATIVE = Code("scale-negative", "Scales of FP4 groups are negative, which kernels don't read.")
_RANGE = Code("zero-point-range", "Zero points out of range, or inconsistent with a symmetric scheme.")
_FORMAT = Code("gptq-format", "GPTQ's second format of zero points, which the config doesn't declare.", fixable=True)
_INDEX = Code("group-index", "GPTQ's `g_idx` is out of range, or out of order with `desc_act: false`.", fixable=True)

Fault = tuple[str, Problem]
"""A part of a layer, and what is wrong with it."""


def check(checkpoint: Checkpoint, claims: Claims | None) -> list[Problem]:
    """Every quantized layer's values; layers with the same problem are reported as one."""
    return of_layers(
        (name, *fault)
        for name, layer in checkpoint.layers.items()
        if layer.quantized
        for fault in _faults(checkpoint, layer, claims)
    )


def _faults(checkpoint: Checkpoint, layer: Layer, claims: Claims | None) -> list[Fault]:
    claim = None if claims is None or claims.unread else claims.of(layer)
    found = _scales(checkpoint, layer, claim)
    if claim is not None:
        found += [*_zero_points(checkpoint, layer, claim), *_group_index(checkpoint, layer, claim)]
    return found


def _scales(checkpoint: Checkpoint, layer: Layer, claim: Claim | None) -> list[Fault]:
    found: list[Fault] = []
    for part in _SCALES:
        tensor = layer.parts.get(part)
        if tensor is None or not tensor.elements:
            continue
        exponents = claim is not None and claim.exponents and part == "weight_scale"
        if not decode.is_float(tensor.dtype) and not (exponents and tensor.dtype == "U8"):
            continue
        values = checkpoint.floats(tensor.name, "F8_E8M0" if exponents else None)
        if claim is not None and claim.form == "fp4" and bool((values < 0).any()):
            found.append((part, Problem(_NEGATIVE, f"`{part}` has negative values", hint=_AGAIN)))
        if not np.isfinite(values).all():
            found.append((part, Problem(_NOT_FINITE, f"`{part}` has NaN or infinite values", hint=_AGAIN)))
        zeros = float(np.mean(values == 0))
        if zeros > _MANY or (zeros and part.startswith("input")):
            found.append((part, Problem(_ZERO, f"`{part}` has zeros", hint=_AGAIN)))
        elif zeros:
            what = f"`{part}` has a few zeros"
            hint = "Harmless where the weights of those groups are all zero."
            found.append((part, Problem(_ZERO, what, hint=hint, severity="warning")))
    return found


def _zero_points(checkpoint: Checkpoint, layer: Layer, claim: Claim) -> list[Fault]:
    tensor = layer.parts.get("weight_zero_point")
    if tensor is not None and claim.form in ("int", "float"):
        return _in_range(checkpoint, tensor.name, tensor.dtype, claim)
    zeros = layer.parts.get("qzeros")
    if zeros is None or claim.form != "gptq" or not claim.symmetric or zeros.dtype != "I32" or claim.bits not in (4, 8):
        return []
    if (checkpoint.quantization or {}).get("checkpoint_format") == "gptq_v2":
        return []
    middle = 1 << (claim.bits - 1)
    stored = decode.unpack(checkpoint.integers(zeros.name), claim.bits)
    if stored.size and bool((stored == middle).all()):
        what = (
            f"zero points are stored as {middle}, which is GPTQ's second format, which the config doesn't"
            " declare: kernels are off by one"
        )
        return [("qzeros", Problem(_FORMAT, what, hint="Set checkpoint_format to gptq_v2.", fixable=True))]
    if stored.size and not bool((stored == middle - 1).all()):
        what = f"the config says symmetric, but zero points aren't all {middle - 1}"
        return [("qzeros", Problem(_RANGE, what, hint="Set `sym` to what it was quantized with."))]
    return []


def _in_range(checkpoint: Checkpoint, name: str, dtype: str, claim: Claim) -> list[Fault]:
    if not decode.is_float(dtype) and not decode.is_integer(dtype):
        return []
    values = checkpoint.floats(name) if decode.is_float(dtype) else checkpoint.integers(name).astype(np.float32)
    low, high = -(1 << (claim.bits - 1)), (1 << (claim.bits - 1)) - 1
    if values.size and not bool(((values >= low) & (values <= high)).all()):
        what = f"zero points are outside {low} to {high}"
        return [("weight_zero_point", Problem(_RANGE, what, hint=_AGAIN))]
    return []


def _group_index(checkpoint: Checkpoint, layer: Layer, claim: Claim) -> list[Fault]:
    """GPTQ's g_idx: the group of each input channel. Servers read it only with desc_act."""
    tensor = layer.parts.get("g_idx")
    qweight = layer.parts.get("qweight")
    if tensor is None or qweight is None or claim.form != "gptq" or not claim.group_size:
        return []
    if not decode.is_integer(tensor.dtype) or not qweight.shape:
        return []  # reported by another check
    index = checkpoint.integers(tensor.name)
    groups = claim.groups(qweight.shape[0] * 32 // claim.bits)
    if not index.size or int(index.min()) < 0 or int(index.max()) >= groups:
        what = f"`g_idx` names groups outside 0 to {groups - 1}"
        return [("g_idx", Problem(_INDEX, what, hint="Quantize again."))]
    if not (checkpoint.quantization or {}).get("desc_act") and bool((np.diff(index) < 0).any()):
        what = "`g_idx` is out of order, and the config says desc_act: false: servers then ignore it"
        return [("g_idx", Problem(_INDEX, what, hint="Set desc_act to true.", fixable=True))]
    return []
