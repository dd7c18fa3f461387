"""Sources that are quantized already and can be unpacked as a start for another scheme: FP8 in blocks (DeepSeek-V3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantize.checkpoint.source import Source

ENVIRONMENT = "llmcompressor"
"""Has compressed-tensors, which unpacks them on a GPU too."""
_SCALE = "_scale_inv"
_FP8 = ("F8_E4M3", "F8_E4M3FNUZ")


def unpacked(source: Source) -> Source | None:
    """The source as it is after `fetch` has unpacked it: the same layers in bfloat16, and `unpack` says from what. None
    for a source that isn't quantized, or in a way that isn't unpacked.
    """
    block = _block(source)
    if block is None:
        return None
    scaled = {tensor.name.removesuffix(_SCALE) for tensor in source.tensors if tensor.name.endswith(_SCALE)}
    packed = {tensor.name for tensor in source.tensors if tensor.dtype in _FP8}
    plain = [tensor for tensor in source.tensors if tensor.name in packed]
    if not packed or packed != scaled or any(len(t.shape) != 2 or not t.name.endswith(".weight") for t in plain):
        return None
    tensors = tuple(
        tensor._replace(dtype="BF16") if tensor.name in packed else tensor
        for tensor in source.tensors
        if not tensor.name.endswith(_SCALE)
    )
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    what = f"FP8 in blocks of {block[0]} x {block[1]}"
    return replace(source, tensors=tensors, config=config, unpack=what, unpack_environment=ENVIRONMENT)


def _block(source: Source) -> tuple[int, int] | None:
    found: Any = source.config.get("quantization_config")
    size = found.get("weight_block_size") if isinstance(found, dict) and found.get("quant_method") == "fp8" else None
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 2**20 for n in size):
        return size[0], size[1]
    return None
