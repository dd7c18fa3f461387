"""Claims about the interval of right and wrong answers of two models to the same items."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from evals.stats.score_interval import mean_of, tango

counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200)).filter(lambda c: sum(c) > 0)


def likelihood_statistic(lost: int, gained: int, items: int, difference: float) -> float:
    """The score statistic with the rate of gains found by maximizing the likelihood numerically."""

    def against(rate: float) -> float:
        cells = ((lost, rate + difference), (gained, rate), (items - lost - gained, 1 - 2 * rate - difference))
        return -sum(n * math.log(p) if p > 0 else -1e9 for n, p in cells if n)

    least, most = max(0.0, -difference), (1 - difference) / 2
    rate = optimize.minimize_scalar(against, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    return (lost - gained - items * difference) / math.sqrt(items * (2 * rate + difference * (1 - difference)))


@pytest.mark.parametrize(("lost", "gained", "items"), [(9, 1, 100), (12, 12, 44), (3, 20, 61), (31, 17, 300)])
def test_at_its_ends_the_score_test_of_maximum_likelihood_just_rejects(lost: int, gained: int, items: int):
    low, high = tango(lost, gained, items, 0.025)
    z = scipy_stats.norm.isf(0.025)
    assert likelihood_statistic(lost, gained, items, low) == pytest.approx(z, abs=1e-4)
    assert likelihood_statistic(lost, gained, items, high) == pytest.approx(-z, abs=1e-4)


def test_without_a_change_the_ends_are_those_of_wilsons_interval():
    z2 = scipy_stats.norm.isf(0.05) ** 2
    assert tango(0, 0, 100, 0.05) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))


@given(counts)
def test_swapping_the_models_turns_the_interval_around(drawn: tuple[int, int, int]):
    lost, gained, _ = drawn
    low, high = tango(lost, gained, sum(drawn), 0.05)
    assert tango(gained, lost, sum(drawn), 0.05) == pytest.approx((-high, -low), abs=1e-7)
    assert -1 <= low <= (lost - gained) / sum(drawn) <= high <= 1


@given(counts)
def test_zero_is_outside_exactly_when_mcnemars_score_test_rejects(drawn: tuple[int, int, int]):
    lost, gained, _ = drawn
    if lost == gained:
        return
    z = abs(lost - gained) / math.sqrt(lost + gained)
    low, high = tango(lost, gained, sum(drawn), 0.05)
    critical = scipy_stats.norm.isf(0.05)
    if abs(z - critical) > 1e-6:
        assert (not low <= 0 <= high) == (z > critical)


@given(counts, st.floats(0.001, 0.2))
def test_more_confidence_is_wider(drawn: tuple[int, int, int], tail: float):
    lost, gained, _ = drawn
    inner, outer = tango(lost, gained, sum(drawn), tail), tango(lost, gained, sum(drawn), tail / 2)
    assert outer[0] <= inner[0] + 1e-9
    assert inner[1] <= outer[1] + 1e-9


@pytest.mark.parametrize(("lost", "gained", "items"), [(1, 0, 0), (-1, 0, 5), (4, 2, 5)])
def test_counts_that_do_not_fit_are_refused(lost: int, gained: int, items: int):
    with pytest.raises(ValueError, match="items lost"):
        tango(lost, gained, items, 0.05)


def test_all_items_lost_is_bounded_by_one():
    low, high = tango(50, 0, 50, 0.05)
    assert 0.85 < low < high == 1


def test_the_mean_of_one_figure_is_that_figure_and_of_equal_ones_is_narrower():
    low, high = mean_of([(0.1, 0.05, 0.2)])
    assert (low, high) == pytest.approx((0.05, 0.2))
    four = mean_of([(0.1, 0.05, 0.2)] * 4)
    assert four == pytest.approx((0.1 - 0.05 / 2, 0.1 + 0.1 / 2))


@pytest.mark.parametrize(("items", "lost", "gained"), [(61, 0.1, 0.06), (310, 0.07, 0.05), (310, 0.03, 0.01)])
def test_each_end_errs_about_as_often_as_it_says(items: int, lost: float, gained: float):
    rng = np.random.default_rng(items)
    trials = 1500
    draws = rng.multinomial(items, [lost, gained, 1 - lost - gained], size=trials)
    ends = np.array([tango(int(b), int(c), items, 0.05) for b, c, _ in draws])
    truth = lost - gained
    for errs in (np.mean(ends[:, 0] > truth), np.mean(ends[:, 1] < truth)):
        assert 0.03 <= errs <= 0.075
