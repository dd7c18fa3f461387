"""The grid: which values a quantized weight may take, and rounding to it.

Follows compressed-tensors: signed integers in [-2^(b-1), 2^(b-1) - 1], `weight = (integer - zero_point) * scale`. A
symmetric grid has no zero point and scale = absmax / (2^b - 1) * 2; an asymmetric one spans [min(0, w), max(0, w)].
With signed scales a symmetric grid has |scale| = absmax / 2^(b-1), and the sign that puts the largest weight at the end
that has one step more (as AutoRound has it): steps are 1 / 2^b finer. An FP8 grid has the values of E4M3 (torch's
float8_e4m3fn, "FP8 Formats for Deep Learning", 2022) in the place of integers, and scale = absmax / 448.

An FP4 grid has the values of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), here as integers of half a step.
MXFP4 (OCP, "Microscaling Formats", 2023) has a power of two per block of 32 input channels; NVFP4 (NVIDIA) a value of
E4M3 per block of 16, times one float32 for all layers that a server joins.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

E4M3_MAX = 448.0
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)
"""The values of FP4 that aren't negative, in half a step."""
_E4M3_LEAST = 2.0**-9
_HALF = torch.finfo(torch.float16)


@dataclass(frozen=True)
class Grid:
    """`bits` a weight; `group_size` input channels share a scale, all of a row's when None.

    `scale_dtype` is the type that scales are stored in: rounding uses the stored values, so that what was optimized is
    what is served. `portable`: they are exact in float16 and in bfloat16, for formats that store the one while servers
    compute in the other. `float8`: values of E4M3, not integers. `activations`: inputs are quantized too, while
    serving, token by token, in the same kind of values. `signed`: scales may be negative, in a symmetric grid.
    `fp4`: values of E2M1, with block scales of NVFP4 or MXFP4.
    """

    bits: int
    symmetric: bool
    group_size: int | None
    scale_dtype: torch.dtype = torch.bfloat16
    float8: bool = False
    activations: bool = False
    portable: bool = False
    signed: bool = False
    fp4: Literal["", "nv", "mx"] = ""

    @property
    def storage(self) -> torch.dtype:
        """The dtype of one stored value."""
        return torch.float8_e4m3fn if self.float8 else torch.int8

    @property
    def packed(self) -> bool:
        """Whether values share words or bytes in a file; those of 8 bits beside rounded inputs don't."""
        return not self.activations or self.bits < 8

    @property
    def float8_inputs(self) -> bool:
        """Whether inputs, where they are quantized, are values of E4M3, not integers."""
        return self.float8 or (self.bits < 8 and not self.fp4)

    @property
    def input_scaled(self) -> bool:
        """Whether inputs, rounded in blocks, have a scale for whole tensors that is known before serving: NVFP4's."""
        return self.activations and self.fp4 == "nv"

    @property
    def plain(self) -> bool:
        """Whether the Triton kernels support it: integers, with scales rounded once."""
        return not self.float8 and not self.portable and not self.fp4

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of a group's range that clipping chooses from. In FP4 above 1, too: a range that ends at 4 has finer
        steps at its end than one that ends at 6 ("four over six", 2025).
        """
        if self.fp4 == "mx":
            return (1.0, 0.5)
        finer = (1.5, 1.25, 1.125) if self.fp4 else ()
        return (1.0, *finer, *(1 - 0.05 * i for i in range(1, 10)))

    def bits_of(self, rows: int, columns: int) -> int:
        """Stored bits of a weight [rows, columns], scales and zero points included."""
        groups = rows * (columns // self.width(columns))
        if self.fp4:
            return rows * columns * self.bits + groups * 8
        return rows * columns * self.bits + groups * (16 + (0 if self.symmetric else self.bits))

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -E2M1[-1] if self.fp4 else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer."""
        return E2M1[-1] if self.fp4 else 2 ** (self.bits - 1) - 1

    def width(self, columns: int) -> int:
        """Input channels a group, of `columns` in all."""
        return self.group_size or columns

    def grouped(self, weight: Tensor) -> Tensor:
        """[rows, columns] as [rows, groups, width]."""
        return weight.unflatten(1, (-1, self.width(weight.shape[1])))

    def fit(self, grouped: Tensor, clip: Tensor | float = 1.0, common: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scales and zero points [rows, groups] (float32) that span [rows, groups, width], shrunk by `clip` (<= 1).

        `clip` is a number, or one for each group. The returned scales are values of `scale_dtype`. `common`, of NVFP4
        alone, where it isn't that of what is given.
        """
        low = grouped.amin(-1).clamp(max=0) * clip
        high = grouped.amax(-1).clamp(min=0) * clip
        if self.fp4:
            common = self.common(grouped.abs().amax()) if common is None else common
            scale = self.block_scale(torch.maximum(-low, high) / self.high, common)
            return scale, torch.zeros_like(scale)
        if self.symmetric:
            scale = self.stored(self.spanned(low, high))
            return scale, torch.zeros_like(scale)
        scale = self.stored((high - low) / (self.high - self.low))
        return scale, torch.round(self.low - low / scale).clamp(self.low, self.high)

    def common(self, largest: Tensor) -> Tensor | None:
        """What NVFP4's block scales are multiplied by when they are stored, by the largest value of all layers that are
        joined, or of their input [1].
        """
        if self.fp4 != "nv":
            return None
        return E4M3_MAX * (E2M1[-1] / 2) / largest.clamp(min=1e-12).view(1)

    def block_scale(self, exact: Tensor, common: Tensor | None) -> Tensor:
        """Scales of half a step as they are stored."""
        if common is None:
            # Powers of two, so that what is largest isn't clipped; 2^-127 is the smallest of E8M0.
            mantissa, exponent = torch.frexp((2 * exact).clamp(min=2.0**-120))
            return torch.ldexp(torch.ones_like(exact), exponent - (mantissa == 0.5).int() - 1)
        stored = (2 * exact * common).clamp(_E4M3_LEAST, E4M3_MAX).to(torch.float8_e4m3fn).float()
        return stored / common / 2

    def spanned(self, low: Tensor, high: Tensor) -> Tensor:
        """The exact scale of a symmetric grid for values from `low` (<= 0) to `high` (>= 0)."""
        largest = torch.maximum(-low, high)
        if self.float8:
            return largest / E4M3_MAX
        if self.signed:
            return torch.where(high > -low, -largest, largest) / -self.low
        return largest * (2 / (self.high - self.low))

    def stored(self, scale: Tensor) -> Tensor:
        """Scales rounded to `scale_dtype`, as float32."""
        if self.signed:
            # Zero counts as positive.
            return torch.where(scale < 0, -1.0, 1.0) * dataclasses.replace(self, signed=False).stored(scale.abs())
        scale = scale.clamp(min=self.smallest)
        if self.portable:
            # float16 first: what bfloat16 makes of a float16 value is one of float16 again, its smallest included.
            return scale.clamp(max=_HALF.max).to(torch.float16).to(torch.bfloat16).to(torch.float32)
        return scale.to(self.scale_dtype).to(torch.float32)

    @property
    def smallest(self) -> float:
        """The smallest scale: a group of zeros has it, and it has to be above zero in `scale_dtype`."""
        return 2.0**-24 if self.portable else max(1e-12, torch.finfo(self.scale_dtype).tiny)

    def steps(self, values: Tensor) -> Tensor | float:
        """How far the values of the grid lie apart at these, which are multiples of a scale."""
        if not self.fp4:
            return 1.0
        size = values.abs()
        return 1.0 + (size >= 4).float() + 2 * (size >= 8).float()

    def borders(self, integers: Tensor) -> tuple[Tensor, Tensor]:
        """Half the way to the neighbours of these values of the grid (float32), below and above."""
        half = torch.full_like(integers, 0.5)
        if not self.fp4:
            return half, half
        outwards = self.steps(integers) / 2
        inwards = torch.where(integers.abs() > 8, 2.0, torch.where(integers.abs() > 4, 1.0, half))
        below, above = torch.where(integers > 0, inwards, outwards), torch.where(integers < 0, inwards, outwards)
        return below, above

    def integers(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest values of the grid, as float32. `scale` and `zero` broadcast against `values`."""
        if self.float8:
            return (values / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)
        if self.fp4:
            exact = (values / scale).clamp_(self.low, self.high)
            # Ties go to the even one of two neighbours, as everywhere.
            step = self.steps(exact)
            return torch.round(exact / step).mul_(step)
        return torch.round(values / scale).add_(zero).clamp_(self.low, self.high)

    def nearest(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """[rows, groups, width] rounded to the grid, as weights."""
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
        return self.integers(grouped, scale, zero).sub_(zero).mul_(scale)

    def rounded(self, weight: Tensor) -> Tensor:
        """[rows, columns] rounded to nearest without clipping: for comparison."""
        grouped = self.grouped(weight)
        return self.nearest(grouped, *self.fit(grouped)).flatten(1)
