"""The integer grid: which values a quantized weight may take, and rounding to it.

Follows compressed-tensors: signed integers in [-2^(b-1), 2^(b-1) - 1], `weight = (integer - zero_point) * scale`. A
symmetric grid has no zero point and scale = absmax / (2^b - 1) * 2; an asymmetric one spans [min(0, w), max(0, w)].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """`bits` a weight; `group_size` input channels share a scale, all of a row's when None.

    `scale_dtype` is the type that scales are stored in: rounding uses the stored values, so that what was optimized is
    what is served.
    """

    bits: int
    symmetric: bool
    group_size: int | None
    scale_dtype: torch.dtype = torch.bfloat16

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    def width(self, columns: int) -> int:
        """Input channels a group, of `columns` in all."""
        return self.group_size or columns

    def grouped(self, weight: Tensor) -> Tensor:
        """[rows, columns] as [rows, groups, width]."""
        return weight.unflatten(1, (-1, self.width(weight.shape[1])))

    def fit(self, grouped: Tensor, clip: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Scales and zero points [rows, groups] (float32) that span [rows, groups, width], shrunk by `clip` (<= 1).

        `clip` is a number, or one for each group. The returned scales are values of `scale_dtype`.
        """
        low = grouped.amin(-1).clamp(max=0) * clip
        high = grouped.amax(-1).clamp(min=0) * clip
        if self.symmetric:
            scale = self._stored(torch.maximum(-low, high) * (2 / (self.high - self.low)))
            return scale, torch.zeros_like(scale)
        scale = self._stored((high - low) / (self.high - self.low))
        return scale, torch.round(self.low - low / scale).clamp(self.low, self.high)

    def _stored(self, scale: Tensor) -> Tensor:
        return scale.clamp(min=self.smallest).to(self.scale_dtype).to(torch.float32)

    @property
    def smallest(self) -> float:
        """The smallest scale: a group of zeros has it, and it has to be above zero in `scale_dtype`."""
        return max(1e-12, torch.finfo(self.scale_dtype).tiny)

    def integers(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest integers of the grid, as float32. `scale` and `zero` broadcast against `values`."""
        return torch.round(values / scale).add_(zero).clamp_(self.low, self.high)

    def nearest(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """[rows, groups, width] rounded to the grid, as weights."""
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
        return self.integers(grouped, scale, zero).sub_(zero).mul_(scale)

    def rounded(self, weight: Tensor) -> Tensor:
        """[rows, columns] rounded to nearest without clipping: the plainest quantization, for comparison."""
        grouped = self.grouped(weight)
        return self.nearest(grouped, *self.fit(grouped)).flatten(1)
