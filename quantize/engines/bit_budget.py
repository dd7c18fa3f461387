"""Mixed precision within a budget: the grids that a layer may get, and whether the budget is feasible."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qpack.core.model_shapes import GROUP_SIZE
from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint.headers import Tensor
from quantize.engines.protocol import Request
from quantize.schemes.schemes import SCHEMES

GROUP_SIZES = (32, 64, 128)
"""Group sizes that every integer kernel supports (quantize/schemes/kernels.py)."""


@dataclass(frozen=True)
class Option:
    """Bits per weight, whether groups have no zero point, and the input channels per scale."""

    bits: int
    symmetric: bool
    group_size: int

    def bits_of(self, rows: int, columns: int) -> int:
        """Stored bits of a weight [rows, columns]: values, scales in 16 bits, zero points."""
        each = 16 + (0 if self.symmetric else self.bits)
        return rows * columns * self.bits + rows * (columns // self.group_size) * each


def options(request: Request) -> tuple[Option, ...]:
    """4 bits in groups of 128, 64, 32 and the recipe's own size, and 8 bits where the target has a kernel."""
    sizes = sorted({*GROUP_SIZES, *([request.group_size] if request.group_size else [])}, reverse=True)
    found = [Option(4, not request.scheme.endswith("_ASYM"), size) for size in sizes]
    if request.target in SCHEMES["W8A16"].kernels:
        # Without zero points: they hardly help at 8 bits, and only one kernel supports them.
        found += [Option(8, True, size) for size in sizes]
    return tuple(found)


def fits(option: Option, columns: int, tensor_parallel: int) -> bool:
    """Whether the group size divides a layer's input channels on each GPU."""
    return columns % (option.group_size * tensor_parallel) == 0


_BUDGET = Code("budget-too-low", "The cheapest choice of groups and bits takes more than the budget.")


def check(request: Request, layers: list[Tensor]) -> list[Problem]:
    """Problems: a budget below the cheapest grids, or layers that no grid divides."""
    where = Location(key=("quantize", "budget"))
    able = options(request)
    spent = weights = 0
    for layer in layers:
        rows, columns = layer.shape
        bits = [o.bits_of(rows, columns) for o in able if fits(o, columns, request.tensor_parallel)]
        if not bits:
            sizes = ", ".join(str(size) for size in sorted({option.group_size for option in able}))
            what = f"groups of {sizes} don't divide {columns} input channels"
            hint = "Add it to `ignore`, or set a `group_size` that divides it."
            return [Problem(GROUP_SIZE, what, replace(where, name=layer.name), hint)]
        spent, weights = spent + min(bits), weights + layer.elements
    if not weights or spent <= request.budget_bits * weights:
        return []
    least = spent / weights
    what = f"{request.budget_bits:g} bits per weight is not feasible: the cheapest choice needs {least:.4f}."
    return [Problem(_BUDGET, what, where, "Scales and zero points count. Raise it.")]
