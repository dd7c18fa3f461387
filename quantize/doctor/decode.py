"""Raw bytes of safetensors to numbers, with numpy alone: bfloat16 and the 8-bit floats have no numpy type.

Sources: the safetensors format's names of types; FP8 E4M3 and E5M2 after "FP8 Formats for Deep Learning"
(Micikevicius et al., 2022; E4M3 is the variant without infinities, torch's float8_e4m3fn); E8M0 and E2M1 after the OCP
Microscaling specification.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_FLOATS: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_INTEGERS: dict[str, Any] = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "U32": "<u4",
                             "BOOL": "<u1"}  # fmt: skip
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4,
              "I16": 2, "I8": 1, "U8": 1, "U32": 4, "BOOL": 1}  # fmt: skip


def _e4m3() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size[(exponent == 15) & (mantissa == 7)] = np.nan
    return np.where(codes < 128, size, -size).astype(np.float32)


_E4M3 = _e4m3()
_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1: Floats = np.concatenate([_POSITIVE, -_POSITIVE])
"""The value of each 4-bit code (FP4); the highest bit is the sign."""


def is_float(dtype: str) -> bool:
    """Whether values of this type are decoded by `floats`."""
    return dtype in _FLOATS or dtype in ("BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def is_integer(dtype: str) -> bool:
    """Whether values of this type are decoded by `integers`."""
    return dtype in _INTEGERS


def floats(raw: bytes, dtype: str) -> Floats:
    """The values as float32, flat. Raises KeyError for a type that isn't a float."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[np.frombuffer(raw, np.uint8)]
    if dtype == "F8_E5M2":
        return (np.frombuffer(raw, np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        codes = np.frombuffer(raw, np.uint8).astype(np.float32)
        return np.exp2(np.where(codes == 255, np.float32(np.nan), codes - 127)).astype(np.float32)
    # A float64 beyond float32's range becomes an infinity, as in a server.
    with np.errstate(over="ignore"):
        return np.frombuffer(raw, _FLOATS[dtype]).astype(np.float32)


def integers(raw: bytes, dtype: str) -> Integers:
    """The values as int64, flat. Raises KeyError for a type that isn't an integer."""
    return np.frombuffer(raw, _INTEGERS[dtype]).astype(np.int64)


def unpack(words: Integers, bits: int) -> Integers:
    """Unsigned values of `bits` (1, 2, 4, 8) packed into 32-bit words, lowest bits first: shape [words, 32 / bits]."""
    shifts = np.arange(0, 32, bits)
    return (words[:, None] >> shifts) & ((1 << bits) - 1)
