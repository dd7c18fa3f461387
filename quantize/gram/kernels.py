"""Triton kernels for a GPU: GPTQ's column loop, the score of scale candidates, and the clipping search.

Each does what the PyTorch code beside it (gptq._round_block, awq.score, awq.clip) does, in one pass over the weights
and with intermediate values in registers. Rounding is to nearest, ties to even: adding and subtracting 1.5 * 2^23.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import Grid


@triton.jit
def _nearest(x):
    x = tl.minimum(tl.maximum(x, -1.0e6), 1.0e6)
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _round_block_kernel(
    target, values, unit, pivots, scales, zeros, group, integers, errors, loss,
    rows, count, unit_stride, low, high, COLUMNS: tl.constexpr, ROWS: tl.constexpr, FP4: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, COLUMNS)
    here = r < rows
    tile = tl.load(target + k[:, None] * rows + r[None, :], mask=(k < count)[:, None] & here[None, :], other=0.0)
    total = tl.load(loss + r, mask=here, other=0.0)
    for j in range(count):
        x = tl.sum(tl.where((k == j)[:, None], tile, 0.0), axis=0)
        g = tl.load(group + j)
        scale = tl.load(scales + g * rows + r, mask=here, other=1.0)
        zero = tl.load(zeros + g * rows + r, mask=here, other=0.0)
        if FP4:
            exact = tl.minimum(tl.maximum(x / scale, low), high)
            size = tl.abs(exact)
            step = tl.where(size < 4.0, 1.0, tl.where(size < 8.0, 2.0, 4.0))
            whole = _nearest(exact / step) * step
        else:
            whole = tl.minimum(tl.maximum(_nearest(x / scale) + zero, low), high)
        value = (whole - zero) * scale
        e = tl.load(values + j * rows + r, mask=here, other=0.0) - value
        tl.store(integers + j * rows + r, whole.to(tl.int8), mask=here)
        tl.store(errors + j * rows + r, e, mask=here)
        total += (x - value) * (x - value) * tl.load(pivots + j)
        u = tl.load(unit + j * unit_stride + k, mask=(k > j) & (k < count), other=0.0)
        tile += u[:, None] * e[None, :]
    tl.store(loss + r, total, mask=here)


# Rows a program and warps: one warp a program, so that the sum over columns needs no shared memory.
ROUND_ROWS, ROUND_WARPS = 8, 1


def round_block(  # type: ignore[no-untyped-def]
    target, values, unit, pivots, scales, zeros, group, grid: Grid, integers, errors, loss
) -> None:
    """gptq._round_block: every program takes a few rows through all columns of the block."""
    count, rows = target.shape
    _round_block_kernel[(triton.cdiv(rows, ROUND_ROWS),)](
        target, values, unit, pivots, scales, zeros, group, integers, errors, loss,
        rows, count, unit.stride(0), float(grid.low), float(grid.high),
        COLUMNS=triton.next_power_of_2(max(count, 16)), ROWS=ROUND_ROWS, FP4=bool(grid.fp4), num_warps=ROUND_WARPS,
    )  # fmt: skip


@triton.jit
def _span(
    v,
    share,
    low,
    high,
    smallest,
    STEPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SIGNED: tl.constexpr,
    BF16: tl.constexpr,
):
    """Scale and zero point of each row of a tile [rows, width], as Grid.fit has them."""
    least = tl.minimum(tl.min(v, axis=1), 0.0) * share
    most = tl.maximum(tl.max(v, axis=1), 0.0) * share
    if SIGNED:
        scale = tl.maximum(-least, most) / -low
    elif SYMMETRIC:
        scale = tl.maximum(-least, most) * (2.0 / STEPS)
    else:
        scale = (most - least) / STEPS
    scale = tl.maximum(scale, smallest)
    if BF16:
        scale = scale.to(tl.bfloat16).to(tl.float32)
    else:
        scale = scale.to(tl.float16).to(tl.float32)
    if SIGNED:
        scale = tl.where(most > -least, -scale, scale)
    zero = tl.zeros_like(scale)
    if not SYMMETRIC:
        zero = tl.minimum(tl.maximum(_nearest(low - least / scale), low), high)
    return scale, zero


@triton.jit
def _score_kernel(
    weight, scales, pivots, out, rows, columns, candidates, width, groups, low, high, smallest,
    STEPS: tl.constexpr, SYMMETRIC: tl.constexpr, SIGNED: tl.constexpr, BF16: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, g = tl.program_id(0), tl.program_id(1)
    r = block * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    inside = c < width
    mask = (r < rows)[:, None] & inside[None, :]
    w = tl.load(weight + r[:, None].to(tl.int64) * columns + (g * width + c)[None, :], mask=mask, other=0.0)
    p = tl.load(pivots + g * width + c, mask=inside, other=0.0)
    for i in range(candidates):
        s = tl.load(scales + i * columns + g * width + c, mask=inside, other=1.0)
        v = w * s[None, :]
        scale, zero = _span(v, 1.0, low, high, smallest, STEPS, SYMMETRIC, SIGNED, BF16)
        whole = tl.minimum(tl.maximum(_nearest(v / scale[:, None]) + zero[:, None], low), high)
        delta = (whole - zero[:, None]) * scale[:, None] / s[None, :] - w
        value = tl.sum(tl.sum(tl.where(mask, delta * delta * p[None, :], 0.0), axis=1), axis=0)
        tl.store(out + (i * groups + g) * tl.num_programs(0) + block, value)


def _constants(grid: Grid) -> dict[str, object]:
    return {
        "STEPS": grid.high - grid.low,
        "SYMMETRIC": grid.symmetric,
        "SIGNED": grid.signed,
        "BF16": grid.scale_dtype == torch.bfloat16,
    }


def scores(weight: Tensor, scales: Tensor, grid: Grid, pivots: Tensor) -> Tensor:
    """awq.score with pivots for all candidates [candidates, columns] at once: [candidates]."""
    rows, columns = weight.shape
    width = grid.width(columns)
    padded = max(triton.next_power_of_2(width), 16)
    each = max(1, 2048 // padded)
    blocks, groups = triton.cdiv(rows, each), columns // width
    out = torch.empty(scales.shape[0], groups, blocks, device=weight.device)
    _score_kernel[(blocks, groups)](
        weight, scales, pivots, out, rows, columns, scales.shape[0], width, groups, float(grid.low), float(grid.high),
        grid.smallest, **_constants(grid), ROWS=each, WIDTH=padded, num_warps=4,
    )  # fmt: skip
    return out.flatten(1).sum(1)


@triton.jit
def _clip_kernel(
    weight, shares, pivots, out, rows, columns, candidates, width, groups, low, high, smallest,
    STEPS: tl.constexpr, SYMMETRIC: tl.constexpr, SIGNED: tl.constexpr, BF16: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    block, g = tl.program_id(0), tl.program_id(1)
    r = block * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    inside = c < width
    mask = (r < rows)[:, None] & inside[None, :]
    w = tl.load(weight + r[:, None].to(tl.int64) * columns + (g * width + c)[None, :], mask=mask, other=0.0)
    p = tl.load(pivots + g * width + c, mask=inside, other=0.0)
    best = tl.full((ROWS,), float("inf"), tl.float32)
    chosen = tl.full((ROWS,), 1.0, tl.float32)
    for i in range(candidates):
        share = tl.load(shares + i)
        scale, zero = _span(w, share, low, high, smallest, STEPS, SYMMETRIC, SIGNED, BF16)
        whole = tl.minimum(tl.maximum(_nearest(w / scale[:, None]) + zero[:, None], low), high)
        delta = (whole - zero[:, None]) * scale[:, None] - w
        value = tl.sum(tl.where(mask, delta * delta * p[None, :], 0.0), axis=1)
        chosen = tl.where(value < best, share, chosen)
        best = tl.minimum(value, best)
    tl.store(out + r.to(tl.int64) * groups + g, chosen, mask=r < rows)


def clips(weight: Tensor, grid: Grid, pivots: Tensor, candidates: tuple[float, ...]) -> Tensor:
    """awq.clip with pivots: the chosen share of each group's range, [rows, groups]."""
    rows, columns = weight.shape
    width = grid.width(columns)
    padded = max(triton.next_power_of_2(width), 16)
    each = max(1, 2048 // padded)
    out = torch.empty(rows, columns // width, device=weight.device)
    _clip_kernel[(triton.cdiv(rows, each), columns // width)](
        weight, torch.tensor(candidates, device=weight.device), pivots, out, rows, columns, len(candidates), width,
        columns // width, float(grid.low), float(grid.high), grid.smallest,
        **_constants(grid), ROWS=each, WIDTH=padded, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _whole(base, offset, scale, zero, low, high, FP4: tl.constexpr):
    """As tune._rounded: a tile's values of the grid, its weights in steps, and which values weren't cut off."""
    exact = tl.div_rn(base, scale)
    if FP4:
        size = tl.abs(exact)
        free = exact + offset * tl.where(size < 4.0, 1.0, tl.where(size < 8.0, 2.0, 4.0))
        cut = tl.minimum(tl.maximum(free, low), high)
        size = tl.abs(cut)
        step = tl.where(size < 4.0, 1.0, tl.where(size < 8.0, 2.0, 4.0))
        whole = _nearest(cut / step) * step
        inside = tl.abs(free) <= high
    else:
        free = _nearest(exact + offset) + zero
        whole = tl.minimum(tl.maximum(free, low), high)
        inside = whole == free
    return whole, exact, inside


@triton.jit
def _tuned_kernel(
    base, offset, scales, zeros, out, rows, columns, width, groups, low, high,
    FP4: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    r, g, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1), tl.arange(0, WIDTH)
    here = r < rows
    mask = here[:, None] & (c < width)[None, :]
    place = r[:, None].to(tl.int64) * columns + (g * width + c)[None, :]
    at = r.to(tl.int64) * groups + g
    s = tl.load(scales + at, mask=here, other=1.0)[:, None]
    z = tl.load(zeros + at, mask=here, other=0.0)[:, None]
    b, o = tl.load(base + place, mask=mask, other=0.0), tl.load(offset + place, mask=mask, other=0.0)
    whole, _, _ = _whole(b, o, s, z, low, high, FP4)
    tl.store(out + place, ((whole - z) * s).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _derivatives_kernel(
    base, offset, scales, zeros, grad, by_scale, by_zero, squares, rows, columns, width, groups, low, high,
    FP4: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    r, g, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1), tl.arange(0, WIDTH)
    here = r < rows
    mask = here[:, None] & (c < width)[None, :]
    place = r[:, None].to(tl.int64) * columns + (g * width + c)[None, :]
    at = r.to(tl.int64) * groups + g
    scale, zero = tl.load(scales + at, mask=here, other=1.0), tl.load(zeros + at, mask=here, other=0.0)
    b, o = tl.load(base + place, mask=mask, other=0.0), tl.load(offset + place, mask=mask, other=0.0)
    d = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    whole, exact, inside = _whole(b, o, scale[:, None], zero[:, None], low, high, FP4)
    free = tl.where(inside, d, 0.0)
    tl.store(by_scale + at, tl.sum((whole - zero[:, None] - tl.where(inside, exact, 0.0)) * d, axis=1), mask=here)
    tl.store(by_zero + at, tl.sum(free - d, axis=1) * scale, mask=here)
    tl.store(squares + at, tl.sum(free * free, axis=1), mask=here)


@triton.jit
def _step_kernel(
    base, offset, scales, zeros, grad, sizes, rate, rows, columns, width, groups, low, high,
    SIGNED: tl.constexpr, FP4: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    r, g, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1), tl.arange(0, WIDTH)
    here = r < rows
    mask = here[:, None] & (c < width)[None, :]
    place = r[:, None].to(tl.int64) * columns + (g * width + c)[None, :]
    at = r.to(tl.int64) * groups + g
    scale, zero = tl.load(scales + at, mask=here, other=1.0), tl.load(zeros + at, mask=here, other=0.0)
    b, o = tl.load(base + place, mask=mask, other=0.0), tl.load(offset + place, mask=mask, other=0.0)
    d = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    _, _, inside = _whole(b, o, scale[:, None], zero[:, None], low, high, FP4)
    d = tl.where(inside, d, 0.0) / (2.0 * tl.load(sizes + r, mask=here, other=1.0) + 1.0e-30)[:, None]
    d = tl.minimum(tl.maximum(d, -1.0), 1.0)
    if SIGNED:
        d = tl.where(scale < 0.0, -1.0, 1.0)[:, None] * d
    o = o - d * tl.load(rate)
    tl.store(offset + place, tl.minimum(tl.maximum(o, -0.5), 0.5), mask=mask)


class Tunable(NamedTuple):
    """What tune rounds: weights and offsets in steps [rows, groups, width], scales and zero points [rows, groups]."""

    base: Tensor
    offset: Tensor
    scale: Tensor
    zero: Tensor


def _tiles(base: Tensor, grid: Grid) -> tuple[tuple[int, int], tuple[object, ...], dict[str, object]]:
    """How many programs, what is the same for all kernels of tuning, and their constants."""
    rows, groups, width = base.shape
    padded = max(triton.next_power_of_2(width), 16)
    each = max(1, 2048 // padded)
    same = (rows, groups * width, width, groups, float(grid.low), float(grid.high))
    return (triton.cdiv(rows, each), groups), same, {"FP4": bool(grid.fp4), "ROWS": each, "WIDTH": padded}


def tuned_weights(site: Tunable, grid: Grid) -> Tensor:
    """The weights in the grid's 16 bits, [rows, columns]."""
    programs, same, constants = _tiles(site.base, grid)
    out = torch.empty(site.base.shape, dtype=grid.scale_dtype, device=site.base.device)
    _tuned_kernel[programs](*site, out, *same, **constants, num_warps=4)
    return out.flatten(1)


def tuned_derivatives(site: Tunable, grad: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """By scales and zero points, of the derivatives by weights `grad` [rows, columns], and the sum of squares of those
    by offsets: [rows, groups] each.
    """
    programs, same, constants = _tiles(site.base, grid)
    by_scale, by_zero, squares = (torch.empty_like(site.scale) for _ in range(3))
    _derivatives_kernel[programs](*site, grad, by_scale, by_zero, squares, *same, **constants, num_warps=4)
    return by_scale, by_zero, squares


def tuning_step(site: Tunable, grad: Tensor, size: Tensor, rate: Tensor, grid: Grid) -> None:
    """Move the offsets against the derivatives by them over twice `size` [rows], their root mean square in a row."""
    programs, same, constants = _tiles(site.base, grid)
    _step_kernel[programs](*site, grad, size, rate, *same, SIGNED=grid.signed, **constants, num_warps=4)
