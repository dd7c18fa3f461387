"""Products of 16-bit matrices in float32, rounded once, on CPUs where that is faster.

PyTorch multiplies bfloat16 by oneDNN where the CPU has AVX-512 (or what ARM has for it), and float16 where it has
AVX512-FP16. Elsewhere it takes plain loops, several times slower than float32's. Of x86 CPUs with AVX-512 only those
with AMX are faster in bfloat16; the others get half of what they get in float32. Products of 16-bit values are exact in
float32, and sums are kept in float32 either way: what comes out is what those instructions give, but for the order of
the sums. Matrices are converted when they are multiplied, inputs a slice at a time, so memory grows by one weight and a
slice. Attention has a kernel of its own, which is as quick in bfloat16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ROWS = 1024
"""Rows of a linear layer's inputs that are converted at a time."""

_PRODUCTS = (
    *(functional.linear, torch.matmul, torch.bmm, torch.mm),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm),
)


def native(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for this type that PyTorch uses and that are faster than float32's."""
    if dtype == torch.bfloat16:
        x86 = torch.cpu._is_avx2_supported()
        return bool(torch.cpu._is_amx_tile_supported() if x86 else torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def quick(inputs: Tensor) -> AbstractContextManager[Any]:
    """Products of `inputs` and what is computed from them are made in the faster way, within the block."""
    return nullcontext() if inputs.device.type != "cpu" or native(inputs.dtype) else InFloat32()


class InFloat32(TorchFunctionMode):  # type: ignore[misc]
    """Products of 16-bit tensors are computed in float32 and given back in their type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See PyTorch's `__torch_function__`."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype not in (torch.bfloat16, torch.float16):
            return func(*args, **kwargs)
        if func is functional.linear:
            return _linear(*args, **kwargs)
        return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()}).to(args[0].dtype)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled():
        # Writing into a slice has no derivative.
        whole = functional.linear(inputs.float(), weight.float(), None if bias is None else bias.float())
        return whole.to(inputs.dtype)
    rows, wide, added = inputs.reshape(-1, inputs.shape[-1]), weight.float(), None if bias is None else bias.float()
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    for part, into in zip(rows.split(_ROWS), out.split(_ROWS), strict=True):
        into.copy_(functional.linear(part.float(), wide, added))
    return out.view(*inputs.shape[:-1], weight.shape[0])


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
