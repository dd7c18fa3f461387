"""scipy.special in the place of scipy.stats: the same numbers, without what takes so long to load."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evals.stats import distributions as ours
from evals.stats import estimates

TAILS = st.floats(0, 1)
FREEDOMS = st.floats(1, 1e9) | st.just(math.inf)
FIGURES = st.floats(-60, 60) | st.sampled_from([-math.inf, math.inf, math.nan])


def same(one: float, other: float) -> None:
    assert one == pytest.approx(other, rel=1e-9, abs=1e-300, nan_ok=True)


@given(TAILS, FIGURES, FREEDOMS)
def test_normal_and_student_are_those_of_scipy_stats(tail: float, figure: float, freedom: float) -> None:
    same(ours.normal_isf(tail), stats.norm.isf(tail))
    same(ours.normal_sf(figure), stats.norm.sf(figure))
    same(ours.t_isf(tail, freedom), stats.t.isf(tail, freedom))
    same(ours.t_sf(figure, freedom), stats.t.sf(figure, freedom))


@given(st.data())
def test_binomials_are_those_of_scipy_stats(data: st.DataObject) -> None:
    trials = data.draw(st.integers(1, 3000))
    events, rate = data.draw(st.integers(-1, trials)), data.draw(st.floats(0, 1))
    same(ours.binomial_sf(events, trials, rate), stats.binom.sf(events, trials, rate))


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_mcnemar_test_is_the_two_sided_binomial_test(lost: int, gained: int) -> None:
    baseline = np.array([1.0] * lost + [0.0] * gained + [1.0])
    artifact = np.array([0.0] * lost + [1.0] * gained + [1.0])
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert estimates.mcnemar(baseline, artifact) == (lost, gained, pytest.approx(expected))
