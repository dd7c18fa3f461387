"""One decoder layer: from Gram matrices of its inputs to integers, scales, and their errors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import awq, gptq, smooth, tune
from .architectures import Site
from .formats import FORMATS, Stored
from .grid import Grid
from .matrices import Gram, error
from .ranks import Move, Ranks

METHODS = ("awq", "gptq", "awq+gptq", "rtn", "smoothquant")
_SAMPLED_ROWS = 128

Phase = Callable[[str], AbstractContextManager[None]]
"""Times the block under this name."""


@dataclass(frozen=True)
class Settings:
    """The job's settings: `method` of METHODS, `damping` of GPTQ, `ignore` patterns of layers not to quantize.

    `format` of FORMATS. `chosen` has grids by layer and site ("model.layers.0 qkv"); `grid` is that of the others.
    """

    method: str
    grid: Grid
    damping: float
    ignore: tuple[str, ...]
    format: str = "compressed-tensors"
    chosen: Mapping[str, Grid] = field(default_factory=dict)
    tuning: tune.Tuning = field(default_factory=tune.Tuning)

    def grid_of(self, prefix: str, site: Site) -> Grid:
        """The grid of a site of the layer `prefix`."""
        return self.chosen.get(f"{prefix} {site.name}", self.grid)

    @property
    def scaled(self) -> bool:
        """Whether input scales are searched."""
        return self.method in ("awq", "awq+gptq", "smoothquant")

    @property
    def clipped(self) -> bool:
        """Whether the ranges of groups are shrunk."""
        return self.method in ("awq", "awq+gptq")

    @property
    def rounded_by_columns(self) -> bool:
        """Whether GPTQ rounds."""
        return self.method in ("gptq", "awq+gptq", "smoothquant")

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Every grid that a layer may have."""
        return (self.grid, *self.chosen.values())

    @property
    def needs_data(self) -> bool:
        """Whether calibration rows are needed."""
        return self.method != "rtn" or any(grid.input_scaled for grid in self.grids)

    @property
    def rounds_inputs(self) -> bool:
        """Whether a server rounds the inputs of some layers."""
        return any(grid.activations for grid in self.grids)

    def ignores(self, name: str) -> bool:
        """Whether a pattern excludes this layer: a name, the end of one, or `re:` and a regular expression."""
        return any(matches(pattern, name) for pattern in self.ignore)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a layer: its name, the end of it, or `re:` and a regular expression."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return name == pattern or name.endswith("." + pattern)


class NotFinite(ArithmeticError):
    """Inputs of a linear layer hold NaN or infinities. The message names the layer."""


class Collected(Exception):
    """A forward pass has reached every site's input; the rest isn't needed."""


@dataclass(frozen=True)
class Solved:
    """One site's share of the result: tensors by name below the layer in place of the weights of the layers in
    `quantized`, and its line of the report.
    """

    quantized: tuple[str, ...]
    tensors: dict[str, Tensor]
    record: dict[str, object]


def owner_of(site: Site, device: torch.device) -> Tensor | None:
    """For each channel of the input the absorber's row that it comes from [columns]; None where those are its last rows
    in order, so that every channel has a scale of its own.
    """
    if site.rows is None or site.rows == tuple(range(site.rows[0], site.rows[0] + len(site.rows))):
        return None
    return torch.tensor(site.rows, device=device)


def collect(
    layer: nn.Module,
    sites: Sequence[Site],
    mask: Callable[[], Tensor | None],
    phase: Phase,
    *,
    sampled: bool = False,
    ending: bool = False,
) -> tuple[dict[str, Gram], list[Any]]:
    """Hooks that accumulate each site's Gram matrix during forward passes: (matrices by site, handles to remove).

    `mask()` gives the real tokens [batch, tokens] of the batch that is passing, None for all. `sampled`: some inputs
    are kept too, for schemes that quantize them. `ending`: a pass ends with Collected at the last site's input.
    """
    grams, handles = {}, []
    seen: set[Gram] = set()
    for site in sites:
        reader = layer.get_submodule(site.readers[0])
        gram = grams[site.name] = Gram(reader.in_features, reader.weight.device, sampled=sampled)

        def hook(_: nn.Module, args: tuple[Tensor, ...], gram: Gram = gram, routed: bool = site.routed) -> None:
            with phase("gram"):
                # Tokens routed to an expert include no padding.
                real = None if routed else mask()
                inputs = args[0].flatten(0, -2)
                gram.add(inputs if real is None else inputs[real.flatten()])
            seen.add(gram)
            if ending and len(seen) == len(sites):
                seen.clear()
                raise Collected

        handles.append(reader.register_forward_pre_hook(hook))
    return grams, handles


@dataclass(frozen=True)
class Block:
    """A decoder layer to be solved: the module with its weights, its full name, and for each site of it the rank that
    solves for it.
    """

    layer: nn.Module
    prefix: str
    sites: Sequence[Site]
    settings: Settings
    phase: Phase
    ranks: Ranks = field(default_factory=Ranks)
    owners: Sequence[int] = ()
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """By site what NVFP4's scales of its inputs are multiplied by [1], once they are known."""

    def owner(self, index: int) -> int:
        """The rank of a site."""
        return self.owners[index] if self.owners else 0

    def mine(self, index: int) -> bool:
        """Whether this rank solves for a site."""
        return self.owner(index) == self.ranks.rank


def cost(layer: nn.Module, site: Site) -> float:
    """How long solving for a site takes, in no unit: its factorization, its products, its loop over columns.

    Fitted to what an H200 takes for Llama-3-8B's four sites.
    """
    rows = sum(layer.get_submodule(name).out_features for name in site.readers)
    columns = float(layer.get_submodule(site.readers[0]).in_features)
    return columns**3 + 1.6 * rows * columns**2 + 8e7 * columns


@torch.no_grad()
def solve(
    block: Block, grams: dict[str, Gram], tuned: Callable[[Sequence[Rounded]], None] | None = None
) -> list[Solved]:
    """Quantize a layer's linear layers in place (they hold the rounded weights afterwards).

    `grams` are those of this rank's sites. `tuned` may change what was rounded, all of the layer's at once, on the
    first rank, which has all results in the end; the others have none. Raises NotFinite with the name of the layer
    whose inputs are not.
    """
    # Scales first, for all sites: v_proj and up_proj read one input and absorb the scale of another.
    plans = [_plan(block, index, grams.get(site.name)) for index, site in enumerate(block.sites)]
    _agree(block, plans)
    row_scales: dict[str, Tensor] = {}
    for plan in plans:
        if plan is not None and plan.scales is not None:
            _fold(block.layer, plan, plan.scales, row_scales)
    _share_inputs(block, [plan for plan in plans if plan is not None])
    mine = [plan for plan in plans if plan is not None and block.ranks.rank == plan.rank]
    if tuned is None:
        # One after the other, so that no two inputs' weights are in memory in 32 bits.
        solved = [_finished(block, _round(block, plan), row_scales) for plan in mine]
    else:
        rounded = [_round(block, plan, keep=True) for plan in mine]
        everyones = _to_first(block, [plan for plan in plans if plan is not None], rounded)
        tuned(everyones)
        _from_first(block, everyones, rounded)
        solved = [_finished(block, one, row_scales) for one in rounded]
    dtype = block.settings.grid.scale_dtype
    names, owners = [], []
    for index, site in enumerate(block.sites):
        for name in site.readers:
            reader = block.layer.get_submodule(name)
            reader.weight.data = reader.weight.data.to(dtype)
            names.append(name)
            owners.append(block.owner(index))
    with block.phase("exchange"):
        block.ranks.spread([block.layer.get_submodule(name).weight.data for name in names], owners)
        return _collected(block, [plan for plan in plans if plan is not None], solved)


def _agree(block: Block, plans: Sequence[_Plan | None]) -> None:
    """Give each plan the scales that its owner chose."""
    if block.ranks.count == 1 or not block.settings.scaled:
        return
    able = [plan for plan in plans if plan is not None and plan.can_scale]
    if not able:
        return
    with block.phase("exchange"):
        device = block.layer.get_submodule(able[0].quantized[0]).weight.device
        # Scales are above zero: zeros say that there are none.
        parts = [
            torch.zeros(plan.columns, device=device) if plan.scales is None else plan.scales.float() for plan in able
        ]
        whole = block.ranks.summed(torch.cat(parts))
        for plan, scales in zip(able, whole.split([plan.columns for plan in able]), strict=True):
            plan.scales = scales.clone() if bool(scales[0] > 0) else None


def _share_inputs(block: Block, plans: Sequence[_Plan]) -> None:
    """Fill the block's `inputs`, on all ranks."""
    scaled = [plan for plan in plans if plan.grid.input_scaled]
    if not scaled:
        return
    device = block.layer.get_submodule(scaled[0].quantized[0]).weight.device
    found = [scale if (scale := plan.input_scale()) is not None else torch.zeros(1, device=device) for plan in scaled]
    with block.phase("exchange"):
        whole = block.ranks.summed(torch.cat(found))
    block.inputs.update({plan.site.name: scale for plan, scale in zip(scaled, whole.split(1), strict=True)})


@contextlib.contextmanager
def as_served(block: Block) -> Iterator[None]:
    """In the block the layer's inputs are rounded as a server does, where it does; derivatives go straight through."""
    handles = []
    for site in block.sites:
        grid = block.settings.grid_of(block.prefix, site)
        if not grid.activations:
            continue

        def hook(_: nn.Module, args: tuple[Tensor, ...], grid: Grid = grid, site: str = site.name) -> Tensor:
            served = smooth.rounded(args[0].detach().float(), grid, block.inputs.get(site))
            return tune.straight(args[0], served.to(args[0].dtype))

        handles += [
            block.layer.get_submodule(name).register_forward_pre_hook(hook)
            for name in site.readers
            if not block.settings.ignores(f"{block.prefix}.{name}")
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_first(block: Block, plans: Sequence[_Plan], rounded: Sequence[Rounded]) -> list[Rounded]:
    """What every rank has rounded, in the order of sites, on the first one; its own on the others."""
    mine = {one.plan.site.name: one for one in rounded}
    if block.ranks.count == 1:
        return list(rounded)
    moves: list[Move] = []
    found: list[Rounded] = []
    for plan in plans:
        one = mine.get(plan.site.name)
        if one is None and block.ranks.first:
            weight = _weights(block.layer, plan.quantized)
            groups = torch.empty(len(weight), plan.columns // plan.grid.width(plan.columns), device=weight.device)
            values = torch.empty(weight.shape, dtype=plan.grid.storage, device=weight.device)
            common = torch.empty(1, device=weight.device) if plan.grid.fp4 == "nv" else None
            site = Stored(values, groups, groups.clone(), common)
            one = Rounded(plan, site, groups.clone(), weight)
        if one is not None:
            found.append(one)
            if not isinstance(one.shares, Tensor):
                one.shares = torch.full_like(one.whole.scale, one.shares)
            moves += [Move(tensor, plan.rank, 0) for tensor in (*_parts(one), one.shares)]
    with block.phase("exchange"):
        block.ranks.exchange(moves)
    return found


def _from_first(block: Block, everyones: Sequence[Rounded], rounded: Sequence[Rounded]) -> None:
    """Back to its rank what was tuned, and what tuning says of it."""
    if block.ranks.count == 1:
        return
    outcome = block.ranks.agreed([one.tuned and dataclasses.asdict(one.tuned) for one in everyones])
    with block.phase("exchange"):
        block.ranks.exchange([Move(part, 0, one.plan.rank) for one in everyones for part in _parts(one)])
    for one in rounded:
        one.tuned = tune.Tuned(**outcome[0]) if outcome and outcome[0] else None


def _parts(one: Rounded) -> list[Tensor]:
    found = [one.whole.values, one.whole.scale, one.whole.zero]
    return found if one.whole.common is None else [*found, one.whole.common]


def _collected(block: Block, plans: Sequence[_Plan], solved: Sequence[Solved]) -> list[Solved]:
    """All sites' results, in order, on the first rank."""
    if block.ranks.count == 1:
        return list(solved)
    shapes = [
        {
            "quantized": one.quantized,
            "record": one.record,
            "tensors": {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in one.tensors.items()},
        }
        for one in solved
    ]
    everyones = block.ranks.gathered(shapes)
    device = block.ranks.device
    moves: list[Move] = []
    found: list[Solved] = []
    taken = [0] * block.ranks.count
    for plan in plans:
        said = everyones[plan.rank][taken[plan.rank]]
        if plan.rank == block.ranks.rank:
            one = solved[taken[plan.rank]]
            tensors = {name: tensor.contiguous().to(device) for name, tensor in one.tensors.items()}
        elif block.ranks.first:
            tensors = {
                name: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
                for name, (shape, dtype) in said["tensors"].items()
            }
        else:
            tensors = {}
        taken[plan.rank] += 1
        moves += [Move(tensor, plan.rank, 0) for tensor in tensors.values()]
        found.append(Solved(tuple(said["quantized"]), tensors, said["record"]))
    block.ranks.exchange(moves)
    return found if block.ranks.first else []


@dataclass
class _Plan:
    """What becomes of a site; but for `scales`, and where they can be, only its rank knows.

    `original` is of the rows that the report's errors are measured on.
    """

    rank: int
    site: Site
    grid: Grid
    quantized: list[str]
    columns: int
    can_scale: bool
    owner: Tensor | None
    matrix: Gram | None = None
    gram: Tensor | None = None
    factored: gptq.Factor | None = None
    choice: awq.Choice | None = None
    scales: Tensor | None = None
    original: Tensor | None = None

    def input_scale(self) -> Tensor | None:
        """What scales of the inputs' blocks are multiplied by while serving [1]; None where nothing is."""
        if not self.grid.input_scaled or self.matrix is None:
            return None
        largest = self.matrix.largest if self.scales is None else self.matrix.largest / self.scales
        return self.grid.common(largest.amax())


def _weights(layer: nn.Module, names: Sequence[str]) -> Tensor:
    return torch.cat([layer.get_submodule(name).weight.float() for name in names])


def _plan(block: Block, index: int, matrix: Gram | None) -> _Plan | None:
    layer, prefix, settings, site = block.layer, block.prefix, block.settings, block.sites[index]
    quantized = [name for name in site.readers if not settings.ignores(f"{prefix}.{name}")]
    if not quantized:
        return None
    first = layer.get_submodule(quantized[0]).weight
    columns, owner = first.shape[1], None
    can_scale = settings.scaled and settings.needs_data and bool(site.absorber)
    if can_scale:
        owner = owner_of(site, first.device)
    plan = _Plan(block.owner(index), site, settings.grid_of(prefix, site), quantized, columns, can_scale, owner)
    if not block.mine(index):
        return plan
    weight = _weights(layer, quantized)
    plan.original = weight[_sampled_rows(weight)]
    if not bool(torch.isfinite(weight).all()):
        raise NotFinite(f"{prefix}.{_broken(layer, quantized)}: its weights hold NaN or infinite values")
    if matrix is None:
        return plan
    plan.matrix = matrix
    gram, factored = plan.gram, plan.factored = statistics(matrix, f"{prefix}.{site.readers[0]}", settings, block.phase)
    if can_scale:
        with block.phase("search"):
            if settings.method == "smoothquant":
                choice = smooth.search(weight, gram, matrix, plan.grid, factored, owner)
            else:
                more = None
                if plan.grid.activations:
                    more = functools.partial(smooth.input_error, matrix.sample, weight, grid=plan.grid)
                choice = awq.search(weight, gram, plan.grid, factored, owner, more)
        plan.choice, plan.scales = choice, choice.scales if choice.exponent is not None else None
    return plan


def statistics(matrix: Gram, name: str, settings: Settings, phase: Phase) -> tuple[Tensor, gptq.Factor | None]:
    """G, and its factors where GPTQ rounds. `name` is the layer whose inputs they are. Raises NotFinite."""
    with phase("gram"):
        gram = matrix.mean()
    if not bool(torch.isfinite(gram.diagonal()).all()):
        raise NotFinite(f"{name}: its inputs hold NaN or infinite values")
    if not settings.rounded_by_columns:
        return gram, None
    with phase("cholesky"):
        try:
            return gram, gptq.factor(gram, settings.damping)
        except gptq.NotPositive:
            raise NotFinite(f"{name}: the Gram matrix of its inputs can't be factorized") from None


def _broken(layer: nn.Module, names: Sequence[str]) -> str:
    return next(name for name in names if not bool(torch.isfinite(layer.get_submodule(name).weight).all()))


def _fold(layer: nn.Module, plan: _Plan, scales: Tensor, row_scales: dict[str, Tensor]) -> None:
    """Divide the module before by the scales, and multiply the readers' input channels by them."""
    absorber = layer.get_submodule(plan.site.absorber)
    weight = absorber.weight.data
    if plan.site.norm:
        # The norm is stored in 16 bits: the readers get exactly what its rounded weight leaves.
        one = 1.0 if plan.site.offset else 0.0
        divided = ((weight.float() + one) / scales - one).to(weight.dtype)
        exact = (weight.float() + one) / (divided.float() + one)
        scales = torch.where(torch.isfinite(exact) & (exact > 0), exact, torch.ones_like(exact))
        absorber.weight.data = torch.where(scales == 1, weight, divided)
    else:
        rows = torch.ones(weight.shape[0], device=scales.device)
        rows[plan.owner if plan.owner is not None else _span(plan.site)] = scales
        row_scales[plan.site.absorber] = rows * row_scales.get(plan.site.absorber, 1)
        absorber.weight.data = weight.float().div_(rows.unsqueeze(1))
        if absorber.bias is not None:
            absorber.bias.data = (absorber.bias.data.float() / rows).to(absorber.bias.dtype)
    plan.scales = scales
    for name in plan.site.readers:
        reader = layer.get_submodule(name)
        reader.weight.data = reader.weight.data.float().mul_(scales)


def _span(site: Site) -> slice:
    """The absorber's rows, which are consecutive."""
    assert site.rows is not None
    return slice(site.rows[0], site.rows[-1] + 1)


@dataclass
class Rounded:
    """One site's integers, scales and zero points; where it may be tuned also the `weight` that was rounded."""

    plan: _Plan
    whole: Stored
    shares: Tensor | float
    weight: Tensor | None
    tuned: tune.Tuned | None = None

    @property
    def names(self) -> list[str]:
        """The layers whose rows these are, in order."""
        return self.plan.quantized

    def knobs(self) -> tune.Knobs:
        """What of it can be tuned. The weight isn't kept."""
        weight, self.weight = self.weight, None
        assert weight is not None
        share = self.shares if isinstance(self.shares, Tensor) else torch.ones_like(self.whole.scale)
        return tune.Knobs(weight, self.whole, share, self.plan.grid)


def _round(block: Block, plan: _Plan, *, keep: bool = False) -> Rounded:
    """Round a site's weights, and `keep` them for tuning."""
    layer, settings, phase = block.layer, block.settings, block.phase
    grid, gram, factored = plan.grid, plan.gram, plan.factored
    weight = _weights(layer, plan.quantized)
    if plan.scales is not None and gram is not None:
        with phase("search"):
            gram = gram / (plan.scales.unsqueeze(1) * plan.scales)
            factored = factored.scaled(plan.scales) if factored else None
    shares: Tensor | float = 1.0
    if settings.clipped and gram is not None:
        with phase("clip"):
            shares = awq.clip(weight, gram, grid, factored)
    grouped = grid.grouped(weight)
    scale, zero = grid.fit(grouped, shares)
    with phase("round"):
        if factored is not None:
            integers, _ = gptq.round_columns(weight, scale, zero, grid, factored)
        else:
            nearest = grid.integers(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1))
            integers = nearest.flatten(1).to(grid.storage)
    whole = Stored(integers, scale, zero, grid.common(grouped.abs().amax()))
    return Rounded(plan, whole, shares, weight if keep else None)


def _finished(block: Block, rounded: Rounded, row_scales: dict[str, Tensor]) -> Solved:
    """Write a site down, and put the rounded weights into the layer."""
    plan, layer = rounded.plan, block.layer
    with block.phase("pack"):
        values = rounded.whole.weights(plan.grid)
        tensors = _store(layer, plan, values, rounded.whole, block.settings)
        rows = [
            row_scales.get(name, torch.ones(layer.get_submodule(name).out_features, device=values.device))
            for name in plan.quantized
        ]
        record = _record(block.prefix, plan, rounded.shares, values.mul_(torch.cat(rows).unsqueeze(1)), plan.grid)
        if rounded.tuned is not None:
            record |= dataclasses.asdict(rounded.tuned)
    return Solved(tuple(plan.quantized), tensors, record)


def _store(layer: nn.Module, plan: _Plan, values: Tensor, whole: Stored, settings: Settings) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    inputs = plan.input_scale()
    start = 0
    for name in plan.quantized:
        reader = layer.get_submodule(name)
        rows = slice(start, start + reader.out_features)
        reader.weight.data = values[rows].to(settings.grid.scale_dtype)
        part = Stored(whole.values[rows], whole.scale[rows], whole.zero[rows], whole.common, inputs)
        written = FORMATS[settings.format].tensors(part, plan.grid)
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in written.items()}
        start = rows.stop
    return tensors


def _record(prefix: str, plan: _Plan, shares: Tensor | float, values: Tensor, grid: Grid) -> dict[str, object]:
    """The report's line. Errors are shares of the output's mean square, on up to 128 rows, before by rounding alone;
    where inputs are quantized while serving, with what that adds.
    """
    assert plan.original is not None
    record: dict[str, object] = {
        "layer": prefix,
        "site": plan.site.name,
        "linears": plan.quantized,
        "bits": grid.bits,
        "symmetric": grid.symmetric,
        "group_size": grid.group_size,
        "float8": grid.float8,
        "fp4": grid.fp4,
        "activations": grid.activations,
        "weights": values.numel(),
        "stored_bits": grid.bits_of(*values.shape),
    }
    if plan.gram is None:
        return record
    rows, original = _sampled_rows(values), plan.original
    power = error(plan.gram, original.clone()).clamp(min=1e-30)
    after = values[rows] / plan.scales if plan.scales is not None else values[rows]
    errors = [error(plan.gram, grid.rounded(original) - original), error(plan.gram, after - original)]
    if grid.activations and plan.matrix is not None:
        sample = plan.matrix.sample
        errors[0] = errors[0] + smooth.input_error(sample, original, None, grid)
        errors[1] = errors[1] + smooth.input_error(sample, original, plan.scales, grid)
    return {
        **record,
        "error_before": float(errors[0] / power),
        "error_after": float(errors[1] / power),
        "exponent": plan.choice.exponent if plan.choice else None,
        "clipped": float((shares < 1).float().mean()) if isinstance(shares, Tensor) else 0.0,
        "damping": plan.factored.damping if plan.factored else None,
        "dead_channels": int((plan.gram.diagonal() == 0).sum()),
    }


def _sampled_rows(weight: Tensor) -> Tensor:
    """Evenly spread ones of [rows, columns]."""
    return torch.linspace(0, weight.shape[0] - 1, min(_SAMPLED_ROWS, weight.shape[0]), device=weight.device).long()
