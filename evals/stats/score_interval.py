"""Intervals for the difference of two paired proportions: right and wrong answers of two models to the same items.

Tango's score interval (Statistics in Medicine 17, 1998) inverts the score test of a given difference; at a difference
of zero that test is McNemar's without continuity correction. It needs no resampling, keeps its level where few items
changed, and doesn't depend on a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.stats import distributions


def tango(lost: int, gained: int, items: int, tail: float) -> tuple[float, float]:
    """The interval of (lost - gained) / items, `tail` being the error at each end.

    `lost` and `gained` are the items that only the one and only the other model answered rightly. Raises ValueError
    when they don't fit into `items`, or there are none.
    """
    if items < 1 or lost < 0 or gained < 0 or lost + gained > items:
        raise ValueError(f"{lost} items lost and {gained} gained of {items}")
    from scipy import optimize  # not at the top: a plan loads this module and looks for no root

    z = distributions.normal_isf(tail)
    value = (lost - gained) / items

    def end(towards: float) -> float:
        # The statistic falls as the assumed difference grows; where it crosses z or -z is the end.
        goal = z if towards < value else -z
        near = _statistic(lost, gained, items, towards) - goal
        if (near < 0) == (goal > 0):
            return towards
        return float(optimize.brentq(lambda d: _statistic(lost, gained, items, d) - goal, value, towards, xtol=1e-12))

    slack = 1e-9
    return (
        value if value <= -1 + slack else max(-1.0, end(-1 + slack)),
        value if value >= 1 - slack else min(1.0, end(1 - slack)),
    )


def mean_of(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The interval of the mean of independent figures, from (value, low, high) of each: their distances to the same end
    add up as squares (MOVER: Zou & Donner, Statistics in Medicine 27, 2008).
    """
    value = math.fsum(v for v, _, _ in parts) / len(parts)
    below = math.sqrt(math.fsum((v - low) ** 2 for v, low, _ in parts)) / len(parts)
    above = math.sqrt(math.fsum((high - v) ** 2 for v, _, high in parts)) / len(parts)
    return value - below, value + above


def _statistic(lost: int, gained: int, items: int, difference: float) -> float:
    """Score statistic of `difference`, with the nuisance rate of gains at its constrained maximum of likelihood."""
    a = 2 * items
    b = -lost - gained + (2 * items - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    gains = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    spread = items * (2 * gains + difference * (1 - difference))
    over = lost - gained - items * difference
    return over / math.sqrt(spread) if spread > 0 else math.copysign(math.inf, over) if over else 0.0
