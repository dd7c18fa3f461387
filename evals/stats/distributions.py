"""Tails and quantiles of the normal, Student's t and the binomial distribution, one number at a time.

From scipy.special: scipy.stats gives the same numbers, but takes twice as long to load, which everyone who plans or
judges would wait for, and a hundred times as long a call. Outside of its domain a function is NaN.
"""

from __future__ import annotations

import math

from scipy import special


def normal_sf(z: float) -> float:
    """The probability above `z` standard deviations."""
    return float(special.ndtr(-z))


def normal_isf(tail: float) -> float:
    """The z above which lies `tail`."""
    return float(-special.ndtri(tail))


def t_sf(t: float, freedom: float) -> float:
    """The probability above `t` of Student's t with `freedom` degrees of freedom."""
    return float(special.stdtr(freedom, -t))


def t_isf(tail: float, freedom: float) -> float:
    """The t above which lies `tail`."""
    return float(-special.stdtrit(freedom, tail)) if tail else math.inf


def binomial_sf(events: float, trials: int, rate: float) -> float:
    """The probability of more than `events` events."""
    return float(special.bdtrc(events, trials, rate))
