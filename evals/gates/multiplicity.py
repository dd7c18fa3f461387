"""Multiple gates: how likely one of them fails by chance, and Holm's correction for it.

A verdict passes only if every gate passes, so more gates never let a bad artifact through (an intersection-union test:
Berger, Technometrics 24, 1982). One failed gate fails it, so more gates make it likelier that a good artifact fails by
chance. Holm's procedure (Scandinavian Journal of Statistics 6, 1979) keeps that probability at the level of one gate,
under any dependence between gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.gates.gates import Kind
from evals.stats import distributions
from qpack.core.records import Estimate

LOGARITHMIC = frozenset({"perplexity_ratio", "domain_perplexity_ratio", "throughput_ratio", "ttft_ratio"})
"""Gates on ratios whose interval was computed on the logarithm, where it is symmetric."""


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given: compare each with the level of a single test.

    None is smaller than its p-value or larger than 1, and their order is kept.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


def p_beyond(estimate: Estimate, kind: Kind, bound: float, *, logarithmic: bool = False) -> float | None:
    """The one-sided p-value of "the figure meets its bound": small when it is far on the bad side.

    Computed from the estimate's interval: its nearer half-width is taken as that of Student's t with `samples` - 1
    degrees of freedom. So it is at most (1 - confidence) / 2 exactly when the whole interval is on the bad side. None
    without an interval, or when figure or interval isn't a number.
    """
    if estimate.interval is None or estimate.samples < 1:
        return None
    value, low, high, limit = estimate.value, estimate.interval.low, estimate.interval.high, bound
    if logarithmic:
        value, low, high, limit = (_log(x) for x in (value, low, high, limit))
    if kind == "min":
        value, low, limit = -value, -high, -limit
    if not math.isfinite(value) or math.isnan(low) or math.isnan(limit):
        return None
    half, gap = value - low, value - limit
    if half <= 0:
        return 0.0 if gap > 0 else 1.0
    freedom = max(1, estimate.samples - 1)
    return distributions.t_sf(gap / half * _reach(estimate, freedom), freedom)


def samples_to_fail(estimate: Estimate, p: float, tests: int) -> int | None:
    """About how many samples make a figure of this value fail among `tests` gates; None when its interval doesn't say.
    `p` is from `p_beyond`.
    """
    if estimate.interval is None or not 0 < p < 0.5:
        return None
    freedom = max(1, estimate.samples - 1)
    tail = (1 - estimate.interval.confidence) / 2
    away = distributions.t_isf(p, freedom)
    needed = estimate.samples * (distributions.t_isf(tail / tests, freedom) / away) ** 2 if away > 0 else math.inf
    if not needed <= 1000 * estimate.samples:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return max(estimate.samples + 1, math.ceil(needed / step) * step)


def _reach(estimate: Estimate, freedom: int) -> float:
    """The interval's half-width in standard errors."""
    confidence = estimate.interval.confidence if estimate.interval else math.nan
    return distributions.t_isf((1 - confidence) / 2, freedom)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan
