"""Group-sequential tests of paired scores: stop as soon as they decide, with the error rate controlled.

Stopping at the first of several intervals that decides has a larger error rate than each interval: five looks at 5 %
err about 14 % of the time. Here each end of the interval spends its error over planned looks (Lan & DeMets, Biometrika
70, 1983; power family of Kim & DeMets, Biometrika 74, 1987), the boundary is computed for the correlation of growing
samples (recursive integration: Armitage, McPherson & Rowe, JRSS A 132, 1969), and the interval at each look is a
repeated confidence interval (Jennison & Turnbull, JRSS B 51, 1989): all of them hold together with the stated
confidence, whatever the stopping rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from evals.gates.gates import Kind, decide
from evals.stats import distributions
from evals.stats.estimates import CONFIDENCE, Floats, paired_drop
from qpack.core.records import Estimate, Outcome

LOOKS = (0.25, 0.5, 0.75, 1.0)
EXPONENT = 2.0
_GRID = 801
_FAR = 9.0  # standard deviations: the probability beyond is negligible


@dataclass(frozen=True)
class Stopped:
    """Where a run stopped: the look (from 1), the items seen over all tasks, the outcome, the repeated interval that
    decided, and the reason.
    """

    look: int
    samples: int
    outcome: Outcome
    estimate: Estimate
    why: str


def spend(shares: Sequence[float], alpha: float, exponent: float = EXPONENT) -> tuple[float, ...]:
    """The error spent by each look: alpha * share ** exponent. A larger exponent saves more for the last look."""
    return tuple(alpha * share**exponent for share in shares)


def tails(shares: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """The one-sided level of each look, such that a true figure is crossed up to look k with probability `spent[k]`.

    `shares` ascend to 1: the part of all samples that each look sees. `spent` ascends: the error spent up to each look.
    Raises ValueError when they don't.
    """
    if not shares or list(shares) != sorted(set(shares)) or shares[0] <= 0 or shares[-1] != 1:
        raise ValueError(f"looks must ascend to 1: {list(shares)}")
    if len(spent) != len(shares) or any(b <= a for a, b in zip((0.0, *spent), spent, strict=False)) or spent[-1] >= 0.5:
        raise ValueError(f"the error spent must ascend, one value per look, and end below 0.5: {list(spent)}")
    # A Brownian motion observed at the shares: `points` and `density` (quadrature weights included) describe the paths
    # that have not crossed yet.
    first = distributions.normal_isf(spent[0])
    levels = [spent[0]]
    points, weights = _grid(shares[0], first)
    density = weights * np.exp(-0.5 * points**2 / shares[0]) / math.sqrt(2 * math.pi * shares[0])
    for k in range(1, len(shares)):
        step, goal = math.sqrt(shares[k] - shares[k - 1]), spent[k] - spent[k - 1]
        z = _boundary(density, points, math.sqrt(shares[k]), step, goal)
        levels.append(distributions.normal_sf(z))
        ahead, weights = _grid(shares[k], z)
        moves = np.exp(-0.5 * ((ahead[:, None] - points[None, :]) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        density = weights * (moves @ density)
        points = ahead
    return tuple(levels)


@dataclass(frozen=True)
class Design:
    """A group-sequential design: the part of all samples seen by each look, the two-sided confidence of all looks
    together, and the exponent of the spending function.
    """

    looks: tuple[float, ...] = LOOKS
    confidence: float = CONFIDENCE
    exponent: float = EXPONENT


def follow(
    pairs: Sequence[tuple[Floats, Floats]],
    bound: float,
    *,
    kind: Kind = "max",
    design: Design = Design(),
    seed: int = 0,
) -> Stopped:
    """Follow the accuracy drop from look to look until it is decided or all samples are used.

    `pairs` are as in `estimates.paired_drop`, with the items of each task in random order: a look sees the first part
    of each.
    """
    looks = design.looks
    each = levels(looks, (1 - design.confidence) / 2, design.exponent)
    for number, (share, tail) in enumerate(zip(looks, each, strict=True), 1):
        seen = [
            (baseline[:count], artifact[:count])
            for baseline, artifact in pairs
            for count in (math.ceil(share * len(baseline)),)
        ]
        estimate = paired_drop(seen, seed=seed, confidence=1 - 2 * tail)
        outcome, why = decide(estimate, kind, bound, "items")
        if outcome != "undecided" or number == len(looks):
            return Stopped(number, estimate.samples, outcome, estimate, why)
    raise AssertionError("tails() refuses a run without looks")


@functools.lru_cache(maxsize=32)
def levels(
    looks: tuple[float, ...], alpha: float = (1 - CONFIDENCE) / 2, exponent: float = EXPONENT
) -> tuple[float, ...]:
    """`tails` of the power family, cached."""
    return tails(looks, spend(looks, alpha, exponent))


def _boundary(density: Floats, points: Floats, share: float, step: float, goal: float) -> float:
    """The z that the remaining paths exceed with probability `goal`."""
    from scipy import optimize

    def over(z: float) -> float:
        return float(density @ special.ndtr((points - z * share) / step)) - goal

    return float(optimize.brentq(over, -_FAR, _FAR, xtol=1e-10))


def _grid(share: float, z: float) -> tuple[Floats, Floats]:
    """Points below the boundary of a look, and Simpson's weights."""
    low, high = -_FAR * math.sqrt(share), z * math.sqrt(share)
    points = np.linspace(low, high, _GRID)
    weights = np.full(_GRID, 2.0)
    weights[1::2] = 4.0
    weights[0] = weights[-1] = 1.0
    return points, weights * (high - low) / (_GRID - 1) / 3
