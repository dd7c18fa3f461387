"""The mean KL divergence over the whole vocabulary, from lists at every position and whole distributions at some.

At each of N positions, the lists of the k most probable tokens give a lower bound b of the divergence d. At n of them,
drawn at random (`choose`), both whole distributions are known, so y = d - b >= 0 is too. What is wanted is the mean of
b + y over all N: the first part is known, the second is estimated from the sample by regression on two figures that
the lists give everywhere,

    x1 = m, the baseline's probability outside the tokens that both lists hold,
    x2 = m u, with u the share of the baseline's list that the artifact's lacks.

The estimate is mean_N(b) + beta mean_N(x) + mean_n(y - beta x), with beta by least squares through the origin: the
generalized regression estimator (Cochran, "Sampling Techniques", 3rd ed. 1977, ch. 7, for its bias and variance;
Särndal, Swensson & Wretman, "Model Assisted Survey Sampling", 1992, ch. 6).

Bias: every position is as likely to be drawn, so with a fixed beta the estimate is unbiased whether or not y follows x.
That beta comes from the same sample adds a bias of the order 1/n, against a standard error of the order 1/sqrt(n);
benchmarks/divergence.py measures both. With fewer than `FEW_SAMPLED` positions beta is 0: no regression, no bias.

Variance: that of the windows of text, and that of the sample of positions within them. Windows are the clusters; each
has its own sampled positions, so resampling whole windows holds both parts (the ultimate cluster; Cochran, ch. 11). The
estimate is a smooth function of sums over windows, which are all that is kept (`WindowDivergence`): a BCa bootstrap,
widened for the number of windows (Hesterberg, "What Teachers Should Know About the Bootstrap", The American
Statistician 69, 2015), and with fewer than FEW_WINDOWS windows a t interval of the linearised estimate.

Version 1 of the estimator is the mean of b alone, a lower bound. It is what records without sampled positions have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evals.stats import distributions, estimates
from evals.stats.estimates import CONFIDENCE, FEW_WINDOWS, RESAMPLES, Floats
from qpack.core.findings import Divergences, WindowDivergence
from qpack.core.records import Estimate, Interval

LOWER_BOUND, WHOLE = 1, 2
"""Versions of the estimator."""

FEW_SAMPLED = 20
_RIDGE = 1e-9


def choose(lengths: Sequence[int], count: int, seed: int) -> NDArray[np.int64]:
    """Which of all positions to know in full, ascending; all of them when there are no more than `count`.

    `lengths` are the positions of each window. Any position is as likely as another: windows get numbers in proportion
    to their length, rounded up or down at random (a systematic draw), and the positions of a window are drawn without
    replacement.
    """
    total = sum(lengths)
    if count >= total:
        return np.arange(total)
    random = np.random.default_rng(seed)
    ends = np.cumsum(lengths)
    share = np.floor(ends * (count / total) + random.random()).astype(np.int64)
    counts = np.diff(share, prepend=0)
    starts = ends - np.asarray(lengths)
    drawn = [
        start + random.choice(length, size=min(number, length), replace=False)
        for start, length, number in zip(starts, lengths, counts, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def window_sums(
    window: NDArray[np.int32],
    flips: NDArray[np.bool_],
    bound: Floats,
    covariates: Floats,
    at: NDArray[np.integer],
    rest: Floats,
) -> tuple[WindowDivergence, ...]:
    """Sums of each window. Of every position [N]: `window`, `flips`, `bound`, `covariates` [N, 2]; `at` [n] are the
    sampled ones and `rest` [n] what their divergence is above the bound.
    """
    found = []
    for number in np.unique(window):
        here, own = window == number, window[at] == number
        x, y = covariates[at][own], rest[own]
        found.append(
            WindowDivergence(
                positions=int(here.sum()),
                flips=int(flips[here].sum()),
                bound=float(bound[here].sum()),
                covariates=(float(covariates[here, 0].sum()), float(covariates[here, 1].sum())),
                sampled=int(own.sum()),
                rest=float(y.sum()),
                sampled_covariates=(float(x[:, 0].sum()), float(x[:, 1].sum())),
                squares=(float((x[:, 0] ** 2).sum()), float((x[:, 0] * x[:, 1]).sum()), float((x[:, 1] ** 2).sum())),
                products=(float((x[:, 0] * y).sum()), float((x[:, 1] * y).sum())),
            )
        )
    return tuple(found)


def mean_divergence(
    divergences: Divergences, *, seed: int = 0, confidence: float = CONFIDENCE, k: int | None = None
) -> Estimate:
    """The mean over positions, in nats, by the estimator that the record names. `k` (length of the lists) is for words.

    `samples` counts windows. Raises ValueError for a version that this qpack doesn't know.
    """
    windows = divergences.windows
    lists = f"top-{k} lists" if k else "lists"
    if divergences.estimator == LOWER_BOUND:
        return lower_bound(windows, lists, seed=seed, confidence=confidence)
    if divergences.estimator != WHOLE:
        raise ValueError(f"estimator {divergences.estimator} of the divergence is not known")
    data = _columns(windows)
    sampled = int(data[_SAMPLED].sum()) if len(windows) else 0
    positions = int(data[_POSITIONS].sum()) if len(windows) else 0
    what = (
        f"KL(baseline || artifact) in nats over the whole vocabulary: {lists} at {positions:,} positions, whole "
        f"distributions at {sampled:,} of them, regression estimate"
    )
    if not sampled:
        return Estimate(value=math.nan, samples=len(windows), interval=None, method=f"{what}; no position was sampled")
    value = float(_regression(*data, axis=0))
    if not math.isfinite(value):
        return Estimate(value=value, samples=len(windows), interval=None, method=f"{what}; a figure isn't finite")
    low, high, how = _interval(data, value, seed, confidence)
    if low == high:
        return Estimate(value=value, samples=len(windows), interval=None, method=f"{what}; the same in each window")
    return Estimate(
        value=value,
        samples=len(windows),
        interval=Interval(low=max(0.0, min(low, value)), high=max(high, value), confidence=confidence),
        method=f"{what}; {how}",
    )


def lower_bound(
    windows: Sequence[WindowDivergence], lists: str = "lists", *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of the lists' lower bounds."""
    found = estimates.mean_of_sums(
        np.array([w.bound for w in windows], dtype=np.float64),
        np.array([w.positions for w in windows], dtype=np.float64),
        seed=seed,
        confidence=confidence,
    )
    what = f"KL(baseline || artifact) in nats over tokens in both {lists} and one outcome for the rest: a lower bound"
    return found.model_copy(update={"method": f"{what}; {found.method}"})


def flip_rate(windows: Sequence[WindowDivergence], *, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The share of positions whose most probable token differs."""
    return estimates.rate_of_sums(
        np.array([w.flips for w in windows], dtype=np.float64),
        np.array([w.positions for w in windows], dtype=np.float64),
        seed=seed,
        confidence=confidence,
    )


_POSITIONS, _SAMPLED = 0, 4


def _columns(windows: Sequence[WindowDivergence]) -> tuple[Floats, ...]:
    """The sums as arrays [windows], in the order that `_regression` takes."""
    rows = [
        (w.positions, w.bound, *w.covariates, w.sampled, w.rest, *w.sampled_covariates, *w.squares, *w.products)
        for w in windows
    ]
    return tuple(np.array(rows, dtype=np.float64).T)


def _regression(*columns: Floats, axis: int) -> Floats:
    """The estimate from sums over windows along `axis`, also of many resamples at once."""
    n_all, b, t1, t2, n, y, s1, s2, q11, q12, q22, p1, p2 = (column.sum(axis=axis) for column in columns)
    beta1, beta2 = _beta(n, q11, q12, q22, p1, p2)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (b + beta1 * t1 + beta2 * t2) / n_all + np.where(n > 0, (y - beta1 * s1 - beta2 * s2) / n, 0.0)
    return np.asarray(np.maximum(found, 0.0))


def _beta(n: Floats, q11: Floats, q12: Floats, q22: Floats, p1: Floats, p2: Floats) -> tuple[Floats, Floats]:
    """Least squares through the origin; 0 where too few positions were sampled. Covariates that go together, or that
    are 0 throughout, leave no unique solution: a small ridge, relative to each one's size, picks one.
    """
    q11, q22 = q11 * (1 + _RIDGE), q22 * (1 + _RIDGE)
    determinant = q11 * q22 - q12 * q12
    both = (n >= FEW_SAMPLED) & (determinant > 0)
    one = (n >= FEW_SAMPLED) & ~both & (q11 > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        beta1 = np.where(both, (q22 * p1 - q12 * p2) / determinant, np.where(one, p1 / q11, 0.0))
        beta2 = np.where(both, (q11 * p2 - q12 * p1) / determinant, 0.0)
    return beta1, beta2


def _interval(data: Sequence[Floats], value: float, seed: int, confidence: float) -> tuple[float, float, str]:
    """(low, high, how) over windows; one window leaves the noise unknown."""
    windows = len(data[0])
    if windows == 1:
        return 0.0, math.inf, "one window, whose noise can't be known"
    n_all, b, t1, t2, n, y, s1, s2, *moments = data
    beta1, beta2 = _beta(*(np.asarray(column.sum()) for column in (n, *moments)))
    residual = y - beta1 * s1 - beta2 * s2
    # The derivative of the estimate by each window's weight.
    pull = (b + beta1 * t1 + beta2 * t2 - (value - residual.sum() / n.sum()) * n_all) / n_all.sum()
    pull = pull + (residual - residual.sum() / n.sum() * n) / n.sum()
    if float(np.abs(pull).max()) <= 1e-12 * max(1.0, value):
        return value, value, ""
    if windows < FEW_WINDOWS:
        spread = math.sqrt(windows / (windows - 1) * float((pull**2).sum()))
        half = distributions.t_isf((1 - confidence) / 2, windows - 1) * spread
        return value - half, value + half, f"t interval over {windows} windows, too few for a bootstrap"
    low, high = estimates.bootstrap_of_sums(data, _regression, seed, confidence)
    # A bootstrap takes the sample's spread for the population's, and the normal for Student's t.
    tail = (1 - confidence) / 2
    wider = math.sqrt(windows / (windows - 1)) * distributions.t_isf(tail, windows - 1) / distributions.normal_isf(tail)
    how = f"BCa bootstrap over {windows} windows, {RESAMPLES:,} resamples, widened by {wider - 1:.1%} for their number"
    return value - (value - low) * wider, value + (high - value) * wider, how
