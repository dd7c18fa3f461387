"""Mixed precision within a budget: the schemes that a layer may get, and whether the budget is feasible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qpack.core import model_shapes
from qpack.core.jsonfile import JsonObject
from qpack.core.model_shapes import GROUP_SIZE
from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import layer_names, layer_roles
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import matcher
from quantize.engines.protocol import Request
from quantize.schemes.schemes import SCHEMES, UNQUANTIZED

GROUP_SIZES = (32, 64, 128)
"""Group sizes that every integer kernel supports (quantize/schemes/kernels.py)."""


@dataclass(frozen=True)
class Option:
    """A scheme, and the input channels that share a scale: None for one per row."""

    scheme: str
    group_size: int | None

    @property
    def width(self) -> int | None:
        """Input channels per scale, where the format has blocks of its own too."""
        return SCHEMES[self.scheme].block or self.group_size

    def bits_of(self, rows: int, columns: int) -> int:
        """Stored bits of a weight [rows, columns]: values, scales of 16 bits (of blocks 8), zero points."""
        scheme = SCHEMES[self.scheme]
        values = rows * columns * scheme.weight_bits
        if self.scheme == UNQUANTIZED:
            return values
        zero = scheme.weight_bits if self.scheme.endswith("_ASYM") else 0
        each = 8 if scheme.block else 16 + zero
        return values + rows * (columns // (self.width or columns)) * each


def options(request: Request) -> tuple[Option, ...]:
    """Every option of any layer. Without choices 4 bits in groups of 128, 64, 32 and the recipe's own size, and 8 bits
    where the target has a kernel.
    """
    if request.choices:
        own = Option(request.scheme, request.group_size)
        named = [Option(scheme, one.groups(scheme)) for one in request.choices for scheme in one.schemes]
        return tuple(dict.fromkeys([*named, own]))
    sizes = sorted({*GROUP_SIZES, *([request.group_size] if request.group_size else [])}, reverse=True)
    four = "W4A16_ASYM" if request.scheme.endswith("_ASYM") else "W4A16"
    found = [Option(four, size) for size in sizes]
    if request.target in SCHEMES["W8A16"].kernels:
        # Without zero points: they hardly help at 8 bits, and only one kernel supports them.
        found += [Option("W8A16", size) for size in sizes]
    return tuple(found)


def allowed(request: Request) -> tuple[tuple[str, tuple[Option, ...]], ...]:
    """(pattern, options) in order: a layer has those of the first pattern that matches it. The last matches all."""
    if not request.choices:
        return (("re:.*", options(request)),)
    found = [
        (one.layers, tuple(Option(scheme, one.groups(scheme)) for scheme in one.schemes)) for one in request.choices
    ]
    return (*found, ("re:.*", (Option(request.scheme, request.group_size),)))


def fits(option: Option, columns: int, tensor_parallel: int) -> bool:
    """Whether the group size divides a layer's input channels on each GPU."""
    return option.width is None or columns % (option.width * tensor_parallel) == 0


def share_of_experts(request: Request, config: JsonObject) -> float:
    """How often a token reads an expert, as the budget counts it: 1 where that is of weights in memory."""
    if not request.per_token:
        return 1.0
    inner: Mapping[str, object] = model_shapes.language_model(config)
    every = next((n for key in layer_roles.EXPERTS if isinstance(n := inner.get(key), int) and n > 0), None)
    chosen = next((n for key in layer_roles.ACTIVE if isinstance(n := inner.get(key), int) and n > 0), None)
    return min(1.0, chosen / every) if every and chosen else 1.0


_BUDGET = Code("budget-too-low", "The cheapest choice of groups and bits takes more than the budget.")


def check(request: Request, layers: list[Tensor], config: JsonObject) -> list[Problem]:
    """Problems: a budget below the cheapest options, or layers that no option divides."""
    where = Location(key=("quantize", "budget"))
    able = [(matcher((pattern,)), found) for pattern, found in allowed(request)]
    share = share_of_experts(request, config)
    spent = weights = 0.0
    for layer in layers:
        rows, columns = layer.shape
        name = layer.name.removesuffix(".weight")
        mine = next((found for matches, found in able if matches(name)), ())
        bits = [o.bits_of(rows, columns) for o in mine if fits(o, columns, request.tensor_parallel)]
        if not bits:
            sizes = ", ".join(str(size) for size in sorted({option.width or columns for option in mine}))
            what = f"groups of {sizes} don't divide {columns} input channels"
            hint = "Add it to `ignore`, or set a `group_size` that divides it."
            return [Problem(GROUP_SIZE, what, replace(where, name=layer.name), hint)]
        read = share if layer_names.is_expert(name) else 1.0
        spent, weights = spent + read * min(bits), weights + read * layer.elements
    if not weights or spent <= request.budget_bits * weights:
        return []
    least = spent / weights
    what = f"{request.budget_bits:g} bits per weight is not feasible: the cheapest choice needs {least:.4f}."
    return [Problem(_BUDGET, what, where, "Scales and zero points count. Raise it.")]
