"""GPTQ: round column by column, each column compensating the errors of those before it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023), in the form
of Chee et al., "QuIP" (2023), theorem 6: with H = A D A^T, A unit upper triangular, rounding w_j + sum_{k<j} e_k A_kj
with e_k = w_k - q_k gives GPTQ's result. It needs one Cholesky factorization and neither an inverse nor a second one,
and the error is sum_j D_j |r_j|^2 with r_j the rounding error of column j.

Columns are rounded in the order of descending diag(H); groups and scales stay those of the given order, so the
artifact needs no g_idx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .grid import Grid

BLOCK = 128
_TRIES = 6


@dataclass(frozen=True)
class Factor:
    """H = A D A^T in the order `order` (most important column first).

    `unit` [columns, columns] is A, `pivots` [columns] is D, `damping` the share of the mean diagonal that was added.
    """

    order: Tensor
    unit: Tensor
    pivots: Tensor
    damping: float

    def weights(self) -> Tensor:
        """D in the columns' own order, the cost of each column's squared rounding error: [columns]."""
        return torch.empty_like(self.pivots).index_copy_(0, self.order, self.pivots)

    def scaled(self, scales: Tensor) -> Factor:
        """The factor of diag(1/s) H diag(1/s), for inputs divided by `scales`."""
        s = scales[self.order]
        return Factor(self.order, self.unit * (s / s.unsqueeze(1)), self.pivots / s.square(), self.damping)


class NotPositive(ArithmeticError):
    """A Gram matrix with NaN or infinite values: singular whatever is added to its diagonal."""


def factor(gram: Tensor, damping: float) -> Factor:
    """Factorize H = G + damping * mean(diag G) * I; damping grows tenfold until H is positive definite.

    Raises NotPositive after six tries.
    """
    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(gram.dtype).tiny)
    # Stable: equal channels (dead ones) keep their order, whatever the device.
    order = torch.argsort(diagonal, descending=True, stable=True)
    # Reversed, the lower factor L of H gives the upper one: H = (P L P)(P L P)^T.
    backwards = order.flip(0)
    for attempt in range(_TRIES):
        share = damping * 10**attempt
        damped = gram[backwards][:, backwards]
        damped.diagonal().add_(share * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        del damped
        if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            upper = lower.flip(0, 1)
            pivots = upper.diagonal()
            # LAPACK's factors lie in columns; the kernels read rows.
            return Factor(order, (upper / pivots).contiguous(), pivots.square(), share)
    raise NotPositive


def round_columns(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, factored: Factor) -> tuple[Tensor, Tensor]:
    """Round [rows, columns] to the grid's values (`grid.storage`), with scales and zero points [rows, groups].

    Also returns the error tr(dW H dW^T) of each row, [rows].
    """
    columns = weight.shape[1]
    order, unit = factored.order, factored.unit
    # Columns lie along the first dimension: each step reads and writes whole rows of memory.
    values = weight.T[order].contiguous()
    group: Any = order // grid.width(columns)
    scales, zeros = scale.T.contiguous(), zero.T.contiguous()
    integers = torch.empty(values.shape, dtype=grid.storage, device=weight.device)
    errors = torch.empty_like(values)
    loss = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
    one_block = _one_block(values.device, grid)
    if one_block is _round_block:
        group = group.tolist()
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        target = torch.addmm(values[start:end], unit[:start, start:end].T, errors[:start])
        inside = unit[start:end, start:end]
        one_block(
            target, values[start:end], inside, factored.pivots[start:end], scales, zeros, group[start:end], grid,
            integers[start:end], errors[start:end], loss,
        )  # fmt: skip
    back = torch.empty_like(order)
    back[order] = torch.arange(columns, device=order.device)
    # As bytes: not every device can index 8-bit floats.
    return integers.view(torch.int8)[back].T.contiguous().view(grid.storage), loss


def _one_block(device: torch.device, grid: Grid) -> Any:
    if device.type == "cuda" and not grid.float8:
        from .kernels import round_block

        return round_block
    return _round_block


def _round_block(
    target: Tensor,
    values: Tensor,
    unit: Tensor,
    pivots: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group: list[int],
    grid: Grid,
    integers: Tensor,
    errors: Tensor,
    loss: Tensor,
) -> None:
    """One block of columns. `target` [columns, rows] is what to round, `values` the weights themselves; `integers`,
    `errors` and `loss` are written.
    """
    for j in range(target.shape[0]):
        scale, zero = scales[group[j]], zeros[group[j]]
        whole = grid.integers(target[j], scale, zero)
        integers[j] = whole
        value = whole.sub_(zero).mul_(scale)
        loss.addcmul_(target[j] - value, target[j] - value, value=float(pivots[j]))
        torch.sub(values[j], value, out=errors[j])
        target[j + 1 :].addr_(unit[j, j + 1 :], errors[j])
