"""AWQ: input scales that protect the channels that matter, chosen on the Gram matrix alone.

Lin et al., "AWQ: Activation-aware Weight Quantization" (2023). Weights are multiplied by s along their input channels
and the inputs divided by it, which changes only rounding. A candidate is
s = x^a / w^(1-a) with x the root mean square of a channel's inputs (the diagonal of G) and w the mean of its weights'
share in their group's largest; `a` goes over a grid. AWQ scores a candidate by running the block over the calibration
set again; here the score is tr(dW G dW^T), or where GPTQ follows, what GPTQ will leave: sum_j D_j |r_j|^2, with D the
pivots of H = A D A^T and r the rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .gptq import Factor
from .grid import Grid
from .matrices import error

CANDIDATES = 20
_FLOOR = 1e-4


@dataclass(frozen=True)
class Choice:
    """Chosen scales [columns], their exponent (None: no scaling was better), and the score before and after."""

    scales: Tensor
    exponent: float | None
    before: float
    after: float


def statistics(weight: Tensor, gram: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """X and w of the candidates, [columns] each."""
    shares = grid.grouped(weight.abs())
    shares = shares / shares.amax(-1, keepdim=True).clamp(min=1e-12)
    return gram.diagonal().sqrt(), shares.flatten(1).mean(0)


def candidates(inputs: Tensor, weights: Tensor) -> Tensor:
    """No scaling, and S = x^a / w^(1-a) for each exponent: [1 + exponents, columns]; dead channels keep 1."""
    a = exponents(inputs.device)
    scales = inputs.clamp(min=1e-12).pow(a) / (weights.pow(1 - a) + _FLOOR)
    return centred(scales.clamp(min=_FLOOR), inputs > 0)


def exponents(device: torch.device) -> Tensor:
    """The exponents, [exponents, 1]: 0, 0.05, ... 0.95."""
    return torch.arange(CANDIDATES, device=device).unsqueeze(1) / CANDIDATES


def centred(scales: Tensor, live: Tensor) -> Tensor:
    """[exponents, columns] so that the largest and the smallest of each row multiply to one; 1 where not live, and in a
    row before all others.

    All rows at once, without branching on the values, which would synchronize a GPU.
    """
    most = scales.where(live, -torch.inf).amax(1, keepdim=True)
    least = scales.where(live, torch.inf).amin(1, keepdim=True)
    scales = torch.where(live, scales / (most * least).sqrt(), 1.0)
    return torch.cat([torch.ones_like(scales[:1]), scales])


def best(scales: Tensor, values: Tensor) -> Choice:
    """The candidate of [1 + exponents, columns], the first of which is no scaling, whose value is the least."""
    # NaN never wins, and equal scores go to the first.
    index = int(torch.where(torch.isnan(values), torch.inf, values).argmin())
    exponent = (index - 1) / CANDIDATES if index else None
    return Choice(scales[index], exponent, float(values[0]), float(values[index]))


def search(
    weight: Tensor,
    gram: Tensor,
    grid: Grid,
    factored: Factor | None,
    owner: Tensor | None,
    more: Callable[[Tensor], Tensor] | None = None,
) -> Choice:
    """The best of 20 exponents for the rows [rows, columns] that read one input, and of no scaling at all.

    `more` gives what else scales [columns] cost, where inputs are rounded too.

    With `factored` the score is what GPTQ will leave, else the error of rounding to nearest. `owner` [columns] names
    channels that have to share a scale (query heads of one key-value head).
    """
    inputs, weights = statistics(weight, gram, grid)
    if owner is not None:
        inputs, weights = _shared(inputs.square(), owner).sqrt(), _shared(weights, owner)
    scales = candidates(inputs, weights)
    values = scores(weight, scales, gram, grid, factored)
    return best(scales, values if more is None else values + torch.stack([more(one) for one in scales]))


def scores(weight: Tensor, scales: Tensor, gram: Tensor, grid: Grid, factored: Factor | None) -> Tensor:
    """`score` of each of [candidates, columns]: [candidates]."""
    if factored is None:
        return torch.stack([score(weight, one, gram, grid, None) for one in scales])
    pivots = factored.weights()
    if _fused(weight, grid):
        from . import kernels

        return kernels.scores(weight, scales, grid, pivots)
    return torch.stack([score(weight, one, gram, grid, pivots) for one in scales])


def _fused(weight: Tensor, grid: Grid) -> bool:
    """Whether the Triton kernels take this: a GPU, and groups that fit into registers."""
    return weight.is_cuda and grid.plain and grid.width(weight.shape[1]) <= 1024 and grid.scale_dtype.itemsize == 2


def score(weight: Tensor, scales: Tensor, gram: Tensor, grid: Grid, pivots: Tensor | None) -> Tensor:
    """The error that rounding leaves with these scales; `pivots` [columns]: after GPTQ, to first order."""
    delta = grid.rounded(weight * scales).div_(scales).sub_(weight)
    return error(gram, delta) if pivots is None else (delta.square_().sum(0) * pivots).sum()


def _shared(values: Tensor, owner: Tensor) -> Tensor:
    """The mean over the channels of each owner, at each of them.

    Summed in rows of a table: where a GPU adds by index, it adds in any order.
    """
    order = torch.argsort(owner, stable=True)
    owners, counts = owner[order], torch.bincount(owner)
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owners]
    table = values.new_zeros(len(counts), int(counts.max()))
    table[owners, place] = values[order]
    return (table.sum(1) / counts)[owner]


def clip(weight: Tensor, gram: Tensor, grid: Grid, factored: Factor | None) -> Tensor:
    """For each group of each row the share of its range, [rows, groups], that leaves the smallest error.

    Groups are scored alone: with their own block of G, or with the pivots where GPTQ follows.
    """
    if factored is not None and _fused(weight, grid):
        from . import kernels

        return kernels.clips(weight, grid, factored.weights(), grid.shares)
    grouped = grid.grouped(weight)
    rows, groups, width = grouped.shape
    if factored is None:
        blocks = torch.stack([gram[i : i + width, i : i + width] for i in range(0, groups * width, width)])
    else:
        pivots = factored.weights().view(groups, width)
    best = torch.full((rows, groups), torch.inf, device=weight.device)
    chosen = torch.ones_like(best)
    for share in grid.shares:
        delta = grid.nearest(grouped, *grid.fit(grouped, share)).sub_(grouped)
        if factored is None:
            turned = delta.transpose(0, 1)
            value = (torch.bmm(turned, blocks) * turned).sum(-1).T
        else:
            value = (delta.square_() * pivots).sum(-1)
        better = value < best
        best = torch.where(better, value, best)
        chosen = torch.where(better, share, chosen)
    return chosen
