"""Recovery: the artifact's mean score over the baseline's, with a paired interval.

Over several tasks it is the mean of the artifact's task scores over the mean of the baseline's ("Average score" on Red
Hat's model cards). Scores are taken as they are: what guessing scores isn't subtracted.

The interval is Fieller's ("Some problems in interval estimation", JRSS B 16, 1954): all ratios r for which the mean of
(artifact - r x baseline) over items isn't shown to differ from 0. Items are the clusters: a score that is the mean of
several answers to an item counts once. It is the delta method's interval where the baseline's mean is known well, and
keeps its coverage where it isn't.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evals.stats import distributions, estimates
from evals.stats.estimates import CONFIDENCE, FEW_EVENTS, Floats
from qpack.core.records import Estimate, Interval


def recovery(pairs: Sequence[tuple[Floats, Floats]], *, confidence: float = CONFIDENCE) -> Estimate:
    """Mean over tasks of the artifact's mean scores, over that of the baseline's; below 1 is worse.

    Each pair is two arrays [items] per task (baseline, artifact), scores of the same items in the same order. With
    fewer than `FEW_EVENTS` items scored differently, the exact bounds of the drop (`estimates.paired_drop`) replace
    Fieller's. A baseline whose mean isn't above 0 has no recovery: the value isn't a number. Raises ValueError when the
    two arrays of a pair differ in shape.
    """
    for baseline, artifact in pairs:
        if baseline.shape != artifact.shape or baseline.ndim != 1:
            raise ValueError(f"paired scores need one shape [items]; got {baseline.shape} and {artifact.shape}")
    items = sum(len(baseline) for baseline, _ in pairs)
    if not pairs or any(len(baseline) == 0 for baseline, _ in pairs):
        return Estimate(value=math.nan, samples=items, interval=None, method="no paired items in at least one task")
    before, after = (float(np.mean([pair[side].mean() for pair in pairs])) for side in (0, 1))
    if not (math.isfinite(before) and math.isfinite(after) and before > 0):
        why = f"the baseline's mean score is {before:g}, so recovery isn't defined"
        return Estimate(value=math.nan, samples=items, interval=None, method=why)
    what = "ratio of mean scores" + ("" if len(pairs) == 1 else f", each the mean of {len(pairs)} tasks")
    changed = sum(int(np.count_nonzero(b != a)) for b, a in pairs)
    if changed < FEW_EVENTS:
        low, high = _few(pairs, before, confidence)
        how = f"{changed} of {items:,} items scored differently; exact bounds of the difference"
    else:
        low, high = _fieller(pairs, confidence)
        how = "Fieller's interval over paired items"
    value = after / before
    interval = Interval(low=min(max(0.0, low), value), high=max(high, value), confidence=confidence)
    return Estimate(value=value, samples=items, interval=interval, method=f"{what}; {how}")


def _fieller(pairs: Sequence[tuple[Floats, Floats]], confidence: float) -> tuple[float, float]:
    """The ends of Fieller's interval; (0, infinity) where the baseline's mean isn't shown to differ from 0."""
    tasks = len(pairs)
    top = float(np.mean([a.mean() for _, a in pairs]))
    bottom = float(np.mean([b.mean() for b, _ in pairs]))
    freedom = max(1, sum(len(b) - 1 for b, _ in pairs))
    if min(len(b) for b, _ in pairs) < 2:
        return 0.0, math.inf
    # Covariance of (artifact's mean, baseline's mean): strata are tasks with equal weights.
    covariance = np.sum([np.cov(np.stack((a, b))) / len(a) for b, a in pairs], axis=0) / tasks**2
    vt, vb, ct = (float(covariance[at]) for at in ((0, 0), (1, 1), (0, 1)))
    square = distributions.t_isf((1 - confidence) / 2, freedom) ** 2
    # (top - r bottom)^2 <= square (vt - 2 r ct + r^2 vb): the values of r between the roots of a parabola.
    a, b, c = bottom**2 - square * vb, top * bottom - square * ct, top**2 - square * vt
    if a <= 0:
        return 0.0, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


def _few(pairs: Sequence[tuple[Floats, Floats]], before: float, confidence: float) -> tuple[float, float]:
    """Ends from the exact bounds of the drop. A tenth of the error is for the baseline's mean, which matters little."""
    error = 1 - confidence
    drop = estimates.paired_drop(pairs, confidence=1 - 0.9 * error).interval
    if drop is None or not (math.isfinite(drop.low) and math.isfinite(drop.high)):
        return 0.0, math.inf
    spread = math.sqrt(sum(float(b.var(ddof=1)) / len(b) if len(b) > 1 else 0.0 for b, _ in pairs)) / len(pairs)
    reach = distributions.normal_isf(0.1 * error / 2) * spread
    least, most = before - reach, before + reach
    if least <= 0:
        return 0.0, math.inf
    return 1 - max(drop.high / least, drop.high / most), 1 - min(drop.low / least, drop.low / most)
