"""Estimates with intervals for paired comparisons: pure functions on numpy arrays that return an `Estimate`.

Conventions (docs/decisions/0005-intervals-and-three-answers.md):

- `confidence` is two-sided. 0.90 leaves 5 % at each end, so each end is a one-sided 95 % bound, as gates use it.
- A figure without sampling noise, or whose noise the data can't show and needn't (see each function), has no interval.
  A figure of unknown noise has an interval as wide as its range, so a gate on it is undecided.
- A bootstrap of data that hardly varies gives too narrow an interval, down to zero width. With fewer than `FEW_EVENTS`
  events (items scored differently, flipped tokens) an exact binomial bound replaces it.

Sources: Efron, "Better bootstrap confidence intervals", JASA 82 (1987), for BCa. Clopper & Pearson, Biometrika 26
(1934). Hoeffding, "On the distribution of the number of successes in independent trials", Ann. Math. Stat. 27 (1956).
McNemar, Psychometrika 12 (1947). Cochran, "Sampling Techniques" (1977), ch. 6, for the linearised ratio of sums.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evals.stats import distributions, score_interval
from qpack.core.records import Estimate, Interval

Floats = NDArray[np.float64]

CONFIDENCE = 0.90
RESAMPLES = 9_999
FEW_EVENTS = 10
FEW_WINDOWS = 10
# Beside work that takes a whole machine nothing can be said; 100 times as wide says so.
_LEAST_KEPT = 0.01


def paired_drop(pairs: Sequence[tuple[Floats, Floats]], *, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The mean over tasks of (mean baseline score - mean artifact score); positive is worse.

    Each pair is two arrays of shape [items] per task, scores of the same items in the same order. Tasks have equal
    weights. Right and wrong answers (scores of 0 and 1) get score
    intervals (`score_interval`); for other scores items are resampled within their task (stratified bootstrap, BCa).
    With fewer than `FEW_EVENTS` items scored differently over all tasks, scores within [0, 1] get an
    exact bound, scores outside it an unbounded interval. Raises ValueError when the two arrays of a pair differ in
    shape.
    """
    for baseline, artifact in pairs:
        if baseline.shape != artifact.shape or baseline.ndim != 1:
            raise ValueError(f"paired scores need one shape [items]; got {baseline.shape} and {artifact.shape}")
    items = sum(len(baseline) for baseline, _ in pairs)
    if not pairs or any(len(baseline) == 0 for baseline, _ in pairs):
        return _nothing(items, "no paired items in at least one task")
    differences = [np.asarray(baseline - artifact, dtype=np.float64) for baseline, artifact in pairs]
    value = float(np.mean([d.mean() for d in differences]))
    if not math.isfinite(value):
        return Estimate(value=value, samples=items, interval=None, method="scores are not all finite")
    over = "" if len(pairs) == 1 else f" averaged over {len(pairs)} tasks"
    what = f"paired difference of means{over}"
    changed = sum(int(np.count_nonzero(d)) for d in differences)
    if changed < FEW_EVENTS or all(float(np.ptp(d)) == 0 for d in differences):
        within_unit = all(float(s.min()) >= 0 and float(s.max()) <= 1 for pair in pairs for s in pair)
        count = f"{changed} of {items:,} items scored differently, too few or too alike for a bootstrap"
        if not within_unit:
            return Estimate(
                value=value,
                samples=items,
                interval=Interval(low=-math.inf, high=math.inf, confidence=confidence),
                method=f"{what}; {count}, and scores outside 0 to 1 have no exact bound",
            )
        low, high = _exact_drop_bounds(differences, (1 - confidence) / 2)
        return Estimate(
            value=value,
            samples=items,
            interval=Interval(low=min(low, value), high=max(high, value), confidence=confidence),
            method=f"{what}; {count}; exact Clopper-Pearson bounds on the shares of items lost and gained",
        )
    if all(bool(np.all((s == 0) | (s == 1))) for pair in pairs for s in pair):
        parts = [_score_interval(d, (1 - confidence) / 2) for d in differences]
        low, high = score_interval.mean_of(parts)
        return Estimate(
            value=value,
            samples=items,
            interval=Interval(low=min(low, value), high=max(high, value), confidence=confidence),
            method=f"{what}; Tango's score interval of right and wrong answers{', combined by MOVER' if over else ''}",
        )
    low, high = _bootstrap(differences, _mean_of_means, seed, confidence)
    return Estimate(
        value=value,
        samples=items,
        interval=Interval(low=low, high=high, confidence=confidence),
        method=f"{what}; BCa bootstrap over items{', within each task' if over else ''}, {RESAMPLES:,} resamples",
    )


def perplexity(nll: Floats, tokens: Floats) -> float:
    """exp(sum nll / sum tokens) over windows [windows]; NaN when there are no tokens."""
    total = float(np.sum(tokens))
    return _exp(float(np.sum(nll)) / total) if total > 0 else math.nan


def perplexity_ratio(
    baseline_nll: Floats, artifact_nll: Floats, tokens: Floats, *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Perplexity of the artifact over that of the baseline, perplexity being exp(sum nll / sum tokens).

    All arrays are [windows]: summed negative log-likelihoods in nats, and predicted tokens. The logarithm of the ratio
    is a ratio of sums over windows, so windows are resampled in pairs. Windows that agree exactly leave no noise to
    estimate: no interval. Raises ValueError when shapes differ.
    """
    _same_shape(baseline_nll, artifact_nll, tokens)
    windows = len(tokens)
    if windows == 0 or float(np.sum(tokens)) <= 0:
        return _nothing(windows, "no predicted tokens")
    with np.errstate(invalid="ignore"):  # infinity minus infinity is the NaN that the estimate then reports
        change = artifact_nll - baseline_nll
    log_ratio = _ratio_of_sums(change, tokens, -math.inf, math.inf, seed, confidence)
    interval = log_ratio.interval
    return Estimate(
        value=_exp(log_ratio.value),
        samples=windows,
        interval=interval
        and Interval(low=_exp(interval.low), high=_exp(interval.high), confidence=interval.confidence),
        method=f"ratio of perplexities over {int(np.sum(tokens)):,} tokens; {log_ratio.method}",
    )


def mean_by_window(
    values: Floats, window: NDArray[np.integer[Any]], *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of non-negative `values` [positions], resampling whole windows: neighbouring positions go together.

    `window` [positions] numbers the window of each position. `samples` of the estimate counts windows.
    """
    _same_shape(values, window)
    if len(values) == 0:
        return _nothing(0, "no positions")
    return mean_of_sums(*_by_window(values, window), seed=seed, confidence=confidence)


def mean_of_sums(sums: Floats, counts: Floats, *, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """`mean_by_window` of sums and numbers of positions, both [windows]."""
    if float(np.sum(counts)) <= 0:
        return _nothing(0, "no positions")
    estimate = _ratio_of_sums(sums, counts, 0.0, math.inf, seed, confidence)
    return estimate.model_copy(update={"method": f"mean over {int(np.sum(counts)):,} positions; {estimate.method}"})


def rate_by_window(
    events: NDArray[np.bool_], window: NDArray[np.integer[Any]], *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """The share of positions where `events` [positions] is true, resampling whole windows.

    With fewer than `FEW_EVENTS` events (or non-events), or the same share in every window, windows can't show how
    events cluster; the interval is then the exact Clopper-Pearson one, which takes positions as independent, and
    `method` says so.
    """
    _same_shape(events, window)
    return rate_of_sums(*_by_window(events.astype(np.float64), window), seed=seed, confidence=confidence)


def rate_of_sums(sums: Floats, counts: Floats, *, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """`rate_by_window` of events and positions, both [windows]."""
    positions, seen = int(np.sum(counts)), int(np.sum(sums))
    if positions <= 0:
        return _nothing(0, "no positions")
    estimate = _ratio_of_sums(sums, counts, 0.0, 1.0, seed, confidence)
    method = f"{seen:,} of {positions:,} positions; {estimate.method}"
    interval = estimate.interval
    if len(counts) > 1 and (min(seen, positions - seen) < FEW_EVENTS or interval is None):
        low, high = clopper_pearson(seen, positions, (1 - confidence) / 2)
        interval = Interval(low=low, high=high, confidence=confidence)
        method = (
            f"{seen:,} of {positions:,} positions; windows too much alike for a bootstrap, so an exact "
            "Clopper-Pearson interval that takes positions as independent"
        )
    return Estimate(value=seen / positions, samples=len(counts), interval=interval, method=method)


def ratio_of_runs(baseline: Floats, artifact: Floats, *, confidence: float = CONFIDENCE) -> Estimate:
    """Geometric mean of the artifact's repeated runs [runs] over the baseline's; for output tokens per second.

    The interval is Welch's t interval on the log scale. With fewer than 2 runs a side, or runs that agree to the last
    digit, there is none. `samples` counts the runs of the side with fewer.
    """
    fewer = min(len(baseline), len(artifact))
    if fewer == 0:
        return _nothing(0, "no runs on at least one side")
    if not (np.all(np.isfinite(baseline)) and np.all(np.isfinite(artifact)) and np.all(baseline > 0)):
        return Estimate(value=math.nan, samples=fewer, interval=None, method="a run has no valid figure")
    if not np.all(artifact > 0):
        value = float(np.mean(artifact) / np.mean(baseline))
        return Estimate(
            value=value, samples=fewer, interval=None, method="ratio of means; a run of the artifact had no output"
        )
    b, a = np.log(baseline), np.log(artifact)
    value = _exp(float(a.mean() - b.mean()))
    runs = f"ratio of geometric means of {len(artifact)} and {len(baseline)} runs"
    if fewer < 2:
        return Estimate(value=value, samples=fewer, interval=None, method=f"{runs}; too few for an interval")
    if float(np.ptp(a)) == 0 and float(np.ptp(b)) == 0:
        return Estimate(value=value, samples=fewer, interval=None, method=f"{runs}, which agree to the last digit")
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = distributions.t_isf((1 - confidence) / 2, freedom) * math.sqrt(va + vb)
    centre = float(a.mean() - b.mean())
    return Estimate(
        value=value,
        samples=fewer,
        interval=Interval(low=_exp(centre - half), high=_exp(centre + half), confidence=confidence),
        method=f"{runs}; Welch t interval on the logarithms",
    )


def ratio_of_rounds(baseline: Floats, artifact: Floats, *, confidence: float = CONFIDENCE) -> Estimate:
    """Geometric mean over rounds of the artifact's figure over the baseline's of the same round, both [rounds].

    The interval is Student's t on the logarithms of the rounds' ratios: what affects both runs of a round (a busy
    machine) cancels, and the variation between rounds gives the interval. Without at least 2 rounds that differ there
    is none. Raises ValueError when the shapes differ.
    """
    _same_shape(baseline, artifact)
    rounds = len(baseline)
    if rounds == 0:
        return _nothing(0, "no rounds")
    if not np.all(np.isfinite(baseline) & np.isfinite(artifact) & (baseline > 0) & (artifact > 0)):
        return Estimate(value=math.nan, samples=rounds, interval=None, method="a round has no valid figure")
    ratios = np.log(artifact) - np.log(baseline)
    centre = float(ratios.mean())
    what = f"geometric mean of {rounds} rounds in which both servers were loaded in turn"
    if rounds < 2 or float(np.ptp(ratios)) == 0:
        why = "too few for an interval" if rounds < 2 else "which agree to the last digit"
        return Estimate(value=_exp(centre), samples=rounds, interval=None, method=f"{what}; {why}")
    half = distributions.t_isf((1 - confidence) / 2, rounds - 1) * float(ratios.std(ddof=1)) / math.sqrt(rounds)
    return Estimate(
        value=_exp(centre),
        samples=rounds,
        interval=Interval(low=_exp(centre - half), high=_exp(centre + half), confidence=confidence),
        method=f"{what}; paired t interval on the logarithms",
    )


def widened(ratio: Estimate, numerator: float, denominator: float, *, confidence: float = CONFIDENCE) -> Estimate:
    """A ratio of two rates, for a machine that was shared while they were measured.

    `numerator` and `denominator` are the shares of the cores that other work took beside each. With those cores too a
    rate could have been higher by up to 1 / (1 - share), so the interval's upper end rises by what the numerator
    lacked, and its lower end falls by what the denominator lacked. A ratio without an interval gets one around its
    value. Pure.
    """
    low, high = (ratio.interval.low, ratio.interval.high) if ratio.interval else (ratio.value, ratio.value)
    kept = [max(_LEAST_KEPT, 1 - share) for share in (numerator, denominator)]
    level = ratio.interval.confidence if ratio.interval else confidence
    wider = Interval(low=low * kept[1], high=high / kept[0], confidence=level)
    return ratio.model_copy(update={"interval": wider, "method": f"{ratio.method}; widened by what other work took"})


def mcnemar(baseline: Floats, artifact: Floats) -> tuple[int, int, float]:
    """(items lost, items gained, exact two-sided p-value) for paired scores [items], a higher score being better.

    The p-value is the binomial test of lost against gained at one half; 1 when no item changed.
    """
    lost = int(np.count_nonzero(artifact < baseline))
    gained = int(np.count_nonzero(artifact > baseline))
    if lost + gained == 0:
        return 0, 0, 1.0
    return lost, gained, min(1.0, 2 * distributions.binomial_sf(max(lost, gained) - 1, lost + gained, 0.5))


def clopper_pearson(events: int, trials: int, tail: float) -> tuple[float, float]:
    """The exact interval for a binomial proportion, `tail` being the error at each end.

    No event in n trials gives an upper end of about 3/n at 5 % (the rule of three).
    """
    return (
        float(special.betaincinv(events, trials - events + 1, tail)) if events > 0 else 0.0,
        float(special.betainccinv(events + 1, trials - events, tail)) if events < trials else 1.0,
    )


def _exact_drop_bounds(differences: Sequence[Floats], tail: float) -> tuple[float, float]:
    """Bounds on the macro-averaged drop from counts of items lost and gained, for scores within [0, 1].

    The drop is at most the rate of losses minus the rate of gains. Each rate is bounded by Clopper-Pearson on the
    counts pooled over tasks; pooling is safe because a sum of unequal Bernoullis is less spread than the binomial with
    its mean (Hoeffding 1956), and the step from the pooled rate to the mean of the tasks' rates is bounded by the
    smallest and the largest task. A score that changes partly counts as a whole change for the outer bound and as
    nothing for the inner one.
    """
    sizes = [len(d) for d in differences]
    total, tasks = sum(sizes), len(sizes)
    widest, narrowest = total / (tasks * min(sizes)), total / (tasks * max(sizes))

    def rate(sign: int, tail: float) -> tuple[float, float]:
        whole = sum(int(np.count_nonzero(sign * d >= 1)) for d in differences)
        some = sum(int(np.count_nonzero(sign * d > 0)) for d in differences)
        return (
            clopper_pearson(whole, total, tail)[0] * narrowest,
            min(1.0, clopper_pearson(some, total, tail)[1] * widest),
        )

    def upper(sign: int) -> float:
        # When the subtracted rate's lower bound is zero for certain, the whole error goes to the other rate; else each
        # has half.
        certain = not any(bool(np.any(-sign * d >= 1)) for d in differences)
        share = tail if certain else tail / 2
        return min(1.0, rate(sign, share)[1] - rate(-sign, share)[0])

    return -upper(-1), upper(1)


def _score_interval(differences: Floats, tail: float) -> tuple[float, float, float]:
    """(drop, low, high) of one task from differences of -1, 0 and 1."""
    lost, gained = int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))
    return float(differences.mean()), *score_interval.tango(lost, gained, len(differences), tail)


def _ratio_of_sums(
    numerator: Floats, denominator: Floats, least: float, most: float, seed: int, confidence: float
) -> Estimate:
    """sum(numerator) / sum(denominator) over windows [windows], with an interval that stays within [least, most]."""
    windows = len(numerator)
    value = float(np.sum(numerator) / np.sum(denominator))
    if not math.isfinite(value):
        return Estimate(value=value, samples=windows, interval=None, method="the data hold values that are not finite")
    if windows == 1:
        interval = Interval(low=least, high=most, confidence=confidence)
        return Estimate(value=value, samples=1, interval=interval, method="one window, whose noise can't be known")
    residuals = numerator - value * denominator
    if float(np.max(np.abs(residuals))) <= 1e-12 * max(1.0, float(np.max(np.abs(numerator)))):
        # Continuous figures that agree in every window come from models that do the same; there is no noise to speak
        # of.
        return Estimate(value=value, samples=windows, interval=None, method=f"the same in each of {windows} windows")
    if windows < FEW_WINDOWS:
        spread = math.sqrt(windows / (windows - 1) * float(np.sum(residuals**2))) / float(np.sum(denominator))
        half = distributions.t_isf((1 - confidence) / 2, windows - 1) * spread
        low, high = value - half, value + half
        method = f"t interval over {windows} windows, too few for a bootstrap"
    else:
        low, high = _bootstrap([numerator, denominator], _sums_ratio, seed, confidence, paired=True)
        method = f"BCa bootstrap over {windows} windows, {RESAMPLES:,} resamples"
    interval = Interval(low=max(least, low), high=min(most, high), confidence=confidence)
    return Estimate(value=value, samples=windows, interval=interval, method=method)


def perplexity_interval(nll: Floats, tokens: Floats, *, confidence: float = CONFIDENCE) -> Estimate:
    """Exp of the mean negative log-likelihood per token, both [windows], with a t interval of the mean over windows
    (the linearised ratio of sums). One window leaves its noise unknown: the interval is unbounded above.
    """
    _same_shape(nll, tokens)
    windows, total = len(tokens), float(np.sum(tokens))
    if windows == 0 or total <= 0:
        return _nothing(windows, "no predicted tokens")
    mean = float(np.sum(nll)) / total
    what = f"perplexity over {int(total):,} tokens"
    if not math.isfinite(mean):
        return Estimate(value=_exp(mean), samples=windows, interval=None, method=f"{what}; not finite")
    if windows == 1:
        unknown = Interval(low=1.0, high=math.inf, confidence=confidence)
        return Estimate(value=_exp(mean), samples=1, interval=unknown, method=f"{what}; one window")
    spread = math.sqrt(windows / (windows - 1) * float(np.sum((nll - mean * tokens) ** 2))) / total
    half = distributions.t_isf((1 - confidence) / 2, windows - 1) * spread
    interval = Interval(low=_exp(mean - half), high=_exp(mean + half), confidence=confidence)
    method = f"{what}; t interval over {windows} windows"
    return Estimate(value=_exp(mean), samples=windows, interval=interval, method=method)


def bootstrap_of_sums(
    data: Sequence[Floats], statistic: Any, seed: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """(low, high) of a statistic of arrays [windows] that are resampled together; `statistic` takes them and `axis`."""
    return _bootstrap(data, statistic, seed, confidence, paired=True)


def _bootstrap(
    data: Sequence[Floats], statistic: Any, seed: int, confidence: float, *, paired: bool = False
) -> tuple[float, float]:
    """A BCa interval, or a percentile one where BCa isn't defined (every resample on one side of the figure)."""
    from scipy import stats  # not at the top: it takes longer to load than the rest of a plan

    low = high = math.nan
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of what the NaN below already says
            result = stats.bootstrap(
                data,
                statistic,
                n_resamples=RESAMPLES,
                batch=max(1, 2_000_000 // sum(len(d) for d in data)),
                paired=paired,
                vectorized=True,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            )
        low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def _mean_of_means(*tasks: Floats, axis: int) -> Any:
    return sum(task.mean(axis=axis) for task in tasks) / len(tasks)


def _sums_ratio(numerator: Floats, denominator: Floats, axis: int) -> Any:
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)


def _by_window(values: Floats, window: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """Sums and counts of `values` for each window that occurs."""
    _, index = np.unique(window, return_inverse=True)
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def _exp(x: float) -> float:
    return math.inf if x > 709 else math.exp(x)


def _same_shape(*arrays: NDArray[Any]) -> None:
    if len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"arrays need one shape [n]; got {[a.shape for a in arrays]}")


def _nothing(samples: int, why: str) -> Estimate:
    return Estimate(value=math.nan, samples=samples, interval=None, method=why)
