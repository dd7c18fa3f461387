"""Gram matrices: G = X^T X / tokens of what a linear layer reads, accumulated in float32.

bf16 inputs multiply exactly in float32 (8 + 8 significant bits), so on a GPU the tensor cores take bf16 in and
accumulate in float32: no worse than converting first. On a CPU the inputs are converted. Only blocks on and above the
diagonal are computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLED_TOKENS = 32


class Gram:
    """Accumulates X^T X over batches of X [tokens, channels].

    With `sampled` also `largest` [channels], each channel's greatest size, and `sample` [tokens, channels], evenly
    spread tokens of every batch: what quantizing them costs isn't in X^T X.
    """

    def __init__(self, channels: int, device: torch.device, *, sampled: bool = False) -> None:
        self._sum = torch.zeros(channels, channels, dtype=torch.float32, device=device)
        self.tokens = 0
        self.largest = torch.zeros(channels, dtype=torch.float32, device=device)
        self._sampled = sampled
        self._sample: list[Tensor] = []
        # Small blocks save more products, large ones run faster: a quarter saves three eighths. On a CPU 192 were the
        # fastest.
        step = max(512, -(-channels // 4)) if device.type == "cuda" else 192
        self._blocks = [(start, min(start + step, channels)) for start in range(0, channels, step)]

    def add(self, inputs: Tensor) -> None:
        """Add a batch [tokens, channels], of any floating type."""
        self.tokens += inputs.shape[0]
        if self._sampled and inputs.shape[0]:
            self.largest = torch.maximum(self.largest, inputs.abs().amax(0).float())
            self._sample.append(inputs[:: -(-inputs.shape[0] // _SAMPLED_TOKENS)].clone())
        if inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16):
            for start, end in self._blocks:
                self._sum[start:end, start:] += torch.mm(
                    inputs[:, start:end].T, inputs[:, start:], out_dtype=torch.float32
                )
            return
        inputs = inputs.float()
        for start, end in self._blocks:
            self._sum[start:end, start:].addmm_(inputs[:, start:end].T, inputs[:, start:])

    @property
    def sample(self) -> Tensor:
        """[tokens, channels], float32."""
        return torch.cat(self._sample).float() if self._sample else self.largest.new_zeros(0, len(self.largest))

    def mean(self) -> Tensor:
        """G [channels, channels], divided by the number of tokens. Nothing can be added afterwards."""
        for start, end in self._blocks:
            self._sum[end:, start:end] = self._sum[start:end, end:].T
        self._sum /= max(self.tokens, 1)
        return self._sum


def error(gram: Tensor, delta: Tensor) -> Tensor:
    """tr(dW G dW^T) of dW [rows, columns]: the mean squared change of the layer's outputs, summed over its rows."""
    return (delta @ gram).mul_(delta).sum()
