"""Scales for layers whose inputs are quantized too, token by token: a scale moves error between weights and inputs.

Xiao et al., "SmoothQuant" (2023): s = max|x|^a / max|w|^(1-a) moves the size of large channels from the inputs into the
weights. There `a` is one number for the model; here it is searched for each input, over both errors that follow: the
weights' from the Gram matrix (or GPTQ's pivots), and the inputs' by rounding a sample of tokens as a server will.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import awq
from .awq import Choice
from .gptq import Factor
from .grid import E4M3_MAX, Grid
from .matrices import Gram

_FLOOR = 1e-5


def rounded(inputs: Tensor, grid: Grid, common: Tensor | None = None) -> Tensor:
    """[..., channels] as a server rounds them: one scale per token, absmax / 127, or absmax / 448 for FP8; FP4 in
    blocks, NVFP4's with the scale `common` for the whole tensor, that of these inputs if None.
    """
    if grid.fp4:
        grouped = inputs.unflatten(-1, (-1, grid.width(inputs.shape[-1])))
        return grid.nearest(grouped, *grid.fit(grouped, 1.0, common)).flatten(-2)
    largest = inputs.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    if grid.float8_inputs:
        step = largest / E4M3_MAX
        return (inputs / step).to(torch.float8_e4m3fn).float() * step
    step = largest / 127
    return torch.round(inputs / step).clamp_(-128, 127) * step


def input_error(sample: Tensor, weight: Tensor, scales: Tensor | None, grid: Grid) -> Tensor:
    """The mean squared change of the outputs of [rows, columns], summed over rows, that rounding the inputs makes.

    `sample` [tokens, columns] are inputs as they were; they are divided by `scales` before they are rounded.
    """
    inputs = sample if scales is None else sample / scales
    delta = rounded(inputs, grid) - inputs
    if scales is not None:
        delta = delta * scales
    return (delta @ weight.T).square().sum() / max(sample.shape[0], 1)


def search(
    weight: Tensor, gram: Tensor, matrix: Gram, grid: Grid, factored: Factor | None, owner: Tensor | None
) -> Choice:
    """The best of 20 exponents for the rows [rows, columns] that read one input, and of no scaling at all."""
    inputs, weights = matrix.largest, weight.abs().amax(0)
    if owner is not None:
        inputs, weights = _largest(inputs, owner), _largest(weights, owner)
    sample = matrix.sample
    scales = candidates(inputs, weights)
    values = awq.scores(weight, scales, gram, grid, factored)
    values = values + torch.stack([input_error(sample, weight, one, grid) for one in scales])
    return awq.best(scales, values)


def candidates(inputs: Tensor, weights: Tensor) -> Tensor:
    """No scaling, and S = x^a / w^(1-a) with x and w the greatest sizes: [1 + exponents, columns].

    Channels that are dead on either side keep 1.
    """
    a = awq.exponents(inputs.device)
    scales = inputs.clamp(min=_FLOOR).pow(a) / weights.clamp(min=_FLOOR).pow(1 - a)
    return awq.centred(scales, (inputs > 0) & (weights > 0))


def _largest(values: Tensor, owner: Tensor) -> Tensor:
    """The maximum over the channels of each owner, at each of them."""
    size = int(owner.max()) + 1
    return torch.zeros(size, device=values.device).scatter_reduce_(0, owner, values, "amax")[owner]
