"""The Pareto front: points that no other point dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(points: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    """Whether each point is on the front; more is better in every figure, so negate what should be small.

    A point is off the front when another is at least as good in every figure and better in one. Equal points are on it
    together. A point with a figure that is no number is off it and beats nothing. Raises ValueError when points differ
    in length.
    """
    if len({len(point) for point in points}) > 1:
        raise ValueError(f"points of different lengths: {sorted({len(point) for point in points})}")
    known = [not any(math.isnan(x) for x in point) for point in points]
    return tuple(
        known[i] and not any(known[j] and _beats(other, point) for j, other in enumerate(points))
        for i, point in enumerate(points)
    )


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
