"""Tuning: rounding and ranges of a decoder layer's linear layers, moved by the gradient of the layer's output error.

After Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (2023;
AutoRound's method), but started from what GPTQ left instead of from rounding to nearest. A weight w is stored as
round(w / s + v) + z with |v| <= 1/2; s and z span the group's range times two shares. Where GPTQ rounded w elsewhere
than to nearest, w is moved to the border of that step, so that v = 0 gives GPTQ's integers. The loss is the squared
difference of the layer's output from the source's, a token's as a share of its mean square; derivatives go straight
through rounding. A step is the gradient over twice its root mean square in a row, cut at 1, times a rate that falls to
zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .formats import Stored
from .grid import Grid

_ROWS = 8
_MEASURED_ROWS = 32
_RANGE_RATE = 0.3
"""Step size of the shares of ranges, relative to that of roundings."""
_NEAREST = 0.998
"""Of the way to the border of a step."""
_SHARES = (0.1, 1.2)


@dataclass(frozen=True)
class Tuning:
    """`iterations` steps, 0 for none, each on `rows` calibration rows."""

    iterations: int = 0
    rows: int = _ROWS


@dataclass(frozen=True)
class Tuned:
    """A layer's output error before and after, and the step that was kept; 0: none was better than GPTQ's result."""

    untuned_error: float
    tuned_error: float
    kept_step: int


def _rounded(base: Tensor, offset: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Values of the grid for weights [rows, groups, width] that are `offset` steps off, and which weren't cut off."""
    exact = base / scale
    if grid.fp4:
        exact.addcmul_(offset, grid.steps(exact))
        return grid.integers(exact, torch.ones_like(scale), zero), exact.abs() <= grid.high
    free = exact.add_(offset).round_().add_(zero)
    whole = free.clamp(grid.low, grid.high)
    return whole, whole == free


class _Rounding(torch.autograd.Function):  # type: ignore[misc]
    """[rows, groups, width] to the grid; straight-through derivatives, that of `offset` by the scale's sign."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, offset: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
        s, z = scale.unsqueeze(-1), zero.unsqueeze(-1)
        whole, inside = _rounded(base, offset, s, z, grid)
        whole.sub_(z)
        # Of less than 8 bits, less a zero point, all fit into a byte.
        ctx.signed = grid.signed
        ctx.save_for_backward(whole.to(torch.int8 if grid.bits < 8 else torch.int16), base, inside, scale)
        return whole.mul_(s)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, base, inside, scale = ctx.saved_tensors
        # One tensor as large as the weights for all of them, since nothing else is as large.
        work = (base / scale.unsqueeze(-1)).mul_(inside)
        by_scale = work.neg_().add_(steps).mul_(grad).sum(-1)
        by_offset = torch.mul(grad, inside, out=work)
        by_zero = (by_offset - grad).sum(-1).mul_(scale)
        if ctx.signed:
            by_offset.mul_(scale.sign().unsqueeze(-1))
        return None, by_offset, by_scale, by_zero, None


class _Fused(torch.autograd.Function):  # type: ignore[misc]
    """The same by kernels, in 16 bits. The gradient is left in the knobs, which make a step of it."""

    @staticmethod
    def forward(ctx: Any, knobs: Knobs, scale: Tensor, zero: Tensor) -> Tensor:
        from . import kernels

        ctx.knobs = knobs
        ctx.save_for_backward(scale, zero)
        return kernels.tuned_weights(kernels.Tunable(knobs._base, knobs.offset, scale, zero), knobs._grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import kernels

        knobs, grad = ctx.knobs, grad.contiguous()
        site = kernels.Tunable(knobs._base, knobs.offset, *ctx.saved_tensors)
        by_scale, by_zero, squares = kernels.tuned_derivatives(site, grad, knobs._grid)
        size = (squares.sum(1) / (squares.shape[1] * knobs._base.shape[2])).sqrt_()
        knobs._given = site, grad, size
        return None, by_scale, by_zero


def _fused(weight: Tensor, grid: Grid) -> bool:
    """Whether the Triton kernels take this: a GPU, and groups that fit into registers."""
    return weight.is_cuda and not grid.float8 and grid.width(weight.shape[1]) <= 1024 and grid.scale_dtype.itemsize == 2


class _Straight(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, exact: Tensor, there: Tensor) -> Tensor:  # noqa: ARG004 - PyTorch hands them over
        return there

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


def straight(exact: Tensor, there: Tensor) -> Tensor:
    """The second of two tensors, with the derivatives of the first: their sum and difference would be off by a rounding
    error.
    """
    found: Tensor = _Straight.apply(exact, there)
    return found


class Knobs:
    """Tunable parameters of one site: `offset` [rows, groups, width], and `shares` of groups' ranges [rows, groups].

    Made of the weight [rows, columns] that GPTQ was given, what it gave, and the share of each group's range. A
    symmetric grid has one share, others one for each end. `kept` is the best that they were, at first what GPTQ gave.
    """

    def __init__(self, weight: Tensor, site: Stored, share: Tensor, grid: Grid) -> None:
        self._grid = grid
        self._by_kernels = _fused(weight, grid)
        self._given: tuple[Any, Tensor, Tensor] | None = None
        self.kept = site
        self._common = site.common
        grouped, s = grid.grouped(weight), site.scale.unsqueeze(-1)
        self._least, self._most = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        whole = grid.grouped(site.values.float())
        below, above = grid.borders(whole)
        whole = whole.sub_(site.zero.unsqueeze(-1))
        self._base = (grouped / s).clamp_(whole - _NEAREST * below, whole + _NEAREST * above).mul_(s)
        self.offset = torch.zeros_like(self._base, requires_grad=True)
        self.shares = [share.clone().requires_grad_() for _ in range(1 if grid.symmetric else 2)]

    @property
    def values(self) -> list[Tensor]:
        """All tunable parameters."""
        return [self.offset, *self.shares]

    def _spanned(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points [rows, groups], as `Grid.fit` has them."""
        grid = self._grid
        if grid.fp4:
            largest = torch.maximum(-self._least, self._most) * self.shares[0]
            there = grid.block_scale(largest.detach() / grid.high, self._common)
            scale = straight(largest / grid.high, there)
            return scale, torch.zeros_like(scale)
        if grid.symmetric:
            exact = grid.spanned(self._least * self.shares[0], self._most * self.shares[0])
            scale = straight(exact, grid.stored(exact.detach()))
            return scale, torch.zeros_like(scale)
        low, high = self._least * self.shares[0], self._most * self.shares[1]
        exact = (high - low) / (grid.high - grid.low)
        scale = straight(exact, grid.stored(exact.detach()))
        free = grid.low - low / scale
        return scale, straight(free, torch.round(free.detach()).clamp_(grid.low, grid.high))

    def weight(self) -> Tensor:
        """[rows, columns], as served."""
        out: Tensor
        if self._by_kernels:
            out = _Fused.apply(self, *(one.contiguous() for one in self._spanned()))
            return out
        out = _Rounding.apply(self._base, self.offset, *self._spanned(), self._grid)
        return out.flatten(1)

    @torch.no_grad()
    def stored(self) -> Stored:
        """Integers, scales and zero points as stored."""
        scale, zero = self._spanned()
        whole, _ = _rounded(self._base, self.offset, scale.unsqueeze(-1), zero.unsqueeze(-1), self._grid)
        return Stored(whole.flatten(1).to(self._grid.storage), scale, zero, self._common)

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """One step of that size (per element) against the gradients, which are then cleared."""
        if self._given is not None:
            from . import kernels

            site, grad, size = self._given
            kernels.tuning_step(site, grad, size, rate, self._grid)
            self._given = None
        for value in self.values:
            grad = value.grad
            if grad is None:
                assert self._by_kernels
                assert value is self.offset
                continue
            size = grad.square().mean(tuple(range(1, grad.dim())), keepdim=True).sqrt_()
            direction = grad.div_(2 * size + 1e-30).clamp_(-1, 1)
            value.sub_(direction.mul_(rate if value is self.offset else _RANGE_RATE * rate))
            value.grad = None
        self.offset.clamp_(-0.5, 0.5)
        for share in self.shares:
            share.clamp_(*_SHARES)


@dataclass(frozen=True)
class Rows:
    """Calibration rows of one length: what goes into the layer [rows, tokens, channels], what the source's layer gives
    for its own inputs, and which tokens are real (None: all).
    """

    hidden: Tensor
    target: Tensor
    mask: Tensor | None

    def taken(self, index: Tensor | slice) -> Rows:
        """Some of them."""
        return Rows(self.hidden[index], self.target[index], None if self.mask is None else self.mask[index])


@dataclass(frozen=True)
class Layer:
    """A decoder layer that is tuned: `names` gives its linear layers' weights by name, of those of all knobs in order;
    `forward` its output for (hidden, real tokens, those weights). `alone`: within it no other thread uses the device.
    `recordable`: its kernels are the same whatever the rows hold.
    """

    knobs: Sequence[Knobs]
    names: Callable[[Sequence[Tensor]], dict[str, Tensor]]
    forward: Callable[[Tensor, Tensor | None, Mapping[str, Tensor]], Tensor]
    alone: Callable[[], AbstractContextManager[Any]]
    recordable: bool

    def error(self, rows: Rows) -> Tensor:
        """The loss with the current parameters."""
        weights = self.names([knob.weight() for knob in self.knobs])
        return loss(self.forward(rows.hidden, rows.mask, weights), rows.target, rows.mask)


def loss(out: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens of the squared difference, each token's as a share of the target's mean square."""
    wide = target.float()
    each = (out.float() - wide).square().mean(-1) / wide.square().mean(-1).clamp(min=1e-30)
    return each.mean() if mask is None else (each * mask).sum() / mask.sum().clamp(min=1)


def tune(layer: Layer, rows: Sequence[Rows], tuning: Tuning, seed: int) -> Tuned:
    """Move a layer's knobs. They keep the best of what they were, after half of the steps, and at the end.

    The error is measured on up to about 32 rows, evenly spread. Equal seeds draw equal rows.
    """
    draw = torch.Generator().manual_seed(seed)
    device = rows[0].hidden.device
    sample = _spread(rows, _MEASURED_ROWS)
    values = [value for knob in layer.knobs for value in knob.values]
    before = best = _measured(layer, sample)
    at = 0
    rate = torch.zeros((), device=device)

    def one_step(part: Rows) -> None:
        for value in values:
            # A failed recording may leave some.
            value.grad = None
        with torch.enable_grad():
            layer.error(part).backward()
        for knob in layer.knobs:
            knob.step(rate)

    recorded = device.type == "cuda" and layer.recordable
    step = Recorded(one_step, device, layer.alone) if recorded else one_step
    queue: list[tuple[int, Tensor]] = []
    for done in range(1, tuning.iterations + 1):
        queue = queue or _shuffled(rows, tuning.rows, draw)
        which, index = queue.pop()
        rate.fill_((tuning.iterations + 1 - done) / tuning.iterations**2)
        step(rows[which].taken(index.to(device)))
        if done in (tuning.iterations // 2, tuning.iterations) and (found := _measured(layer, sample)) < best:
            best, at = found, done
            for knob in layer.knobs:
                # As what is written, which takes a quarter of what moves.
                knob.kept = knob.stored()
    return Tuned(before, best, at)


@torch.no_grad()
def _measured(layer: Layer, sample: Sequence[Rows]) -> float:
    counts = [len(part.hidden) for part in sample]
    errors = [float(layer.error(part)) * count for part, count in zip(sample, counts, strict=True)]
    return sum(errors) / sum(counts)


_Shape = tuple[int, int, bool]
"""Rows, tokens, and whether all are real: what tells one recorded step from another."""


class Recorded:
    """A step on a GPU, recorded as a CUDA graph: starting its several hundred kernels takes longer than they do.

    The first two steps with as many rows of a length run as they are, since libraries set themselves up in them. What
    can't be recorded (the driver refuses, or memory would have to be freed meanwhile) goes on as it is, to the same
    bits.
    """

    def __init__(
        self,
        step: Callable[[Rows], None],
        device: torch.device,
        alone: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._step, self._alone, self._stream = step, alone, torch.cuda.Stream(device)
        self._device = device
        self._seen: dict[_Shape, int] = {}
        self._graphs: dict[_Shape, tuple[torch.cuda.CUDAGraph, Rows]] = {}
        self._able = True
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, rows: Rows) -> None:
        """One step with these rows."""
        key = (*rows.hidden.shape[:2], rows.mask is None)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._able and self._seen[key] == 3:
            self._able = self._record(key, rows)
        if key in self._graphs:
            graph, where = self._graphs[key]
            where.hidden.copy_(rows.hidden)
            where.target.copy_(rows.target)
            if where.mask is not None and rows.mask is not None:
                where.mask.copy_(rows.mask)
            graph.replay()
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._step(rows)
        current.wait_stream(self._stream)

    def _record(self, key: _Shape, rows: Rows) -> bool:
        """Whether it could be recorded. What is recorded isn't run."""
        # The rows were taken out of their batch: the recorded step reads this memory from now on.
        graph = torch.cuda.CUDAGraph()
        with self._alone():
            torch.cuda.synchronize(self._device)
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    self._step(rows)
                    graph.capture_end()
                except RuntimeError:
                    # The capture has to be ended even so; else the allocator frees no block that two streams used.
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()
                    with contextlib.suppress(RuntimeError, AttributeError):
                        torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
                    return False
        self._graphs[key] = graph, rows
        return True


def _shuffled(rows: Sequence[Rows], size: int, draw: torch.Generator) -> list[tuple[int, Tensor]]:
    """Every row once, in pieces of `size` of one length, in random order: (which, indices)."""
    pieces = [
        (which, piece)
        for which, part in enumerate(rows)
        for piece in torch.randperm(len(part.hidden), generator=draw).split(size)
    ]
    return [pieces[i] for i in torch.randperm(len(pieces), generator=draw).tolist()]


def _spread(rows: Sequence[Rows], wanted: int) -> list[Rows]:
    """About `wanted` rows, evenly spaced."""
    step = max(1, sum(len(part.hidden) for part in rows) // wanted)
    return [part.taken(slice(None, None, step)) for part in rows]
