"""How many items a gate on accuracy takes: planned from what items of a task differed by before.

A gate passes when the whole interval is on the good side of its bound. With items whose paired differences have the
variance v, a true drop of d, and a bound b on the drop, that happens with probability `power` for

    n = v (z_alpha + z_power)^2 / (b - d)^2

items (one-sided; Chow, Shao & Wang, "Sample Size Calculations in Clinical Research", ch. 3). For right and wrong
answers v is the share of items that change, less d^2. A bound r on recovery is a bound (1 - r) x baseline score on the
drop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evals.stats import distributions
from evals.stats.estimates import CONFIDENCE
from qpack.core.records import Estimate

POWER = 0.8


@dataclass(frozen=True)
class Seen:
    """What was seen of a task before: the variance of an item's paired difference, the baseline's score, the drop."""

    variance: float
    baseline: float
    drop: float


def variance_of(drop: Estimate) -> float | None:
    """The variance of one item's paired difference, from a drop's interval; None without a finite one."""
    held = drop.interval
    if held is None or drop.samples < 2 or not (math.isfinite(held.low) and math.isfinite(held.high)):
        return None
    half = (held.high - held.low) / 2
    reach = distributions.normal_isf((1 - held.confidence) / 2)
    return (half / reach) ** 2 * drop.samples


def drop_bound(gate: str, bound: float, baseline: float) -> float:
    """The bound on a drop that a gate sets: its own, or what a recovery leaves of the baseline's score."""
    return (1 - bound) * baseline if gate.endswith("recovery") else bound


def items_needed(
    seen: Sequence[Seen], bound: float, *, drop: float = 0.0, power: float = POWER, confidence: float = CONFIDENCE
) -> int | None:
    """Items per task so that the mean drop over the tasks, `drop` in truth, is shown to be below `bound`; None where
    the true drop isn't below it, and no number of items shows that.
    """
    if bound <= drop or not seen:
        return None
    z = distributions.normal_isf((1 - confidence) / 2) + distributions.normal_isf(1 - power)
    variance = sum(max(0.0, task.variance) for task in seen) / len(seen) ** 2
    return max(1, math.ceil(variance * (z / (bound - drop)) ** 2))
