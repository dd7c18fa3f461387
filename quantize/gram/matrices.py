"""Gram matrices: G = X^T X / tokens of what a linear layer reads, accumulated in float32.

bf16 inputs multiply exactly in float32 (8 + 8 significant bits), so on a GPU the tensor cores take bf16 in and
accumulate in float32: no worse than converting first. On a CPU the inputs are converted, and only the blocks on and
above the diagonal are computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 512


class Gram:
    """Accumulates X^T X over batches of X [tokens, channels]."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._sum = torch.zeros(channels, channels, dtype=torch.float32, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Add a batch [tokens, channels], of any floating type."""
        self.tokens += inputs.shape[0]
        if inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16):
            torch.addmm(self._sum, inputs.T, inputs, out_dtype=torch.float32, out=self._sum)
            return
        inputs = inputs.float()
        channels = inputs.shape[1]
        for start in range(0, channels, _BLOCK):
            end = min(start + _BLOCK, channels)
            self._sum[start:end, start:].addmm_(inputs[:, start:end].T, inputs[:, start:])

    def mean(self) -> Tensor:
        """G [channels, channels]: symmetric, divided by the number of tokens."""
        upper = torch.triu(self._sum)
        return (upper + torch.triu(upper, 1).T) / max(self.tokens, 1)


def error(gram: Tensor, delta: Tensor) -> Tensor:
    """tr(dW G dW^T): the mean squared change of the layer's outputs, summed over its rows. `delta` is [rows, columns]."""
    return (delta @ gram).mul_(delta).sum()
