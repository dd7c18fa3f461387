"""Claims about looking early: published boundaries, and error rates of the whole rule over simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evals.gates.gates import decide
from evals.gates.group_sequential import LOOKS, follow, spend, tails
from evals.stats import estimates
from tests.unit.test_multiplicity import simulated


def test_the_boundaries_of_obrien_and_fleming_as_lan_and_demets_spend_them():
    # One-sided 2.5 %, five equal looks: the values in the documentation of gsDesign and ldbounds.
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    spent = [2 * scipy_stats.norm.sf(scipy_stats.norm.isf(0.0125) / math.sqrt(t)) for t in shares]
    z = scipy_stats.norm.isf(tails(shares, spent))
    assert z == pytest.approx((4.8769, 3.3569, 2.6803, 2.2898, 2.0310), abs=5e-4)


def test_one_look_is_the_fixed_sample_test():
    assert tails((1.0,), (0.05,)) == (0.05,)


def test_two_looks_agree_with_the_bivariate_normal():
    first, second = tails((0.5, 1.0), (0.01, 0.05))
    a, b = scipy_stats.norm.isf(first), scipy_stats.norm.isf(second)
    r = math.sqrt(0.5)
    stays = scipy_stats.multivariate_normal(cov=[[1, r], [r, 1]]).cdf([a, b])
    assert 1 - stays == pytest.approx(0.05, abs=1e-5)


@settings(max_examples=15)
@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=5, unique=True), st.floats(0.01, 0.2), st.floats(1, 4))
def test_a_look_is_stricter_than_all_of_them_and_laxer_than_what_it_newly_spends(
    inner: list[float], alpha: float, exponent: float
):
    shares = (*sorted(x for x in inner if all(abs(x - y) > 0.02 or x == y for y in inner)), 1.0)
    spent = spend(shares, alpha, exponent)
    for level, new, total in zip(tails(shares, spent), np.diff([0.0, *spent]), spent, strict=True):
        assert new - 1e-6 <= level <= total + 1e-6


@pytest.mark.parametrize(
    ("shares", "spent"),
    [((), ()), ((0.5,), (0.05,)), ((0.5, 0.5, 1), (0.01, 0.02, 0.05)), ((0.5, 1), (0.05, 0.01)), ((0.5, 1), (0.05,))],
)
def test_looks_that_do_not_ascend_are_refused(shares: tuple[float, ...], spent: tuple[float, ...]):
    with pytest.raises(ValueError, match="ascend"):
        tails(shares, spent)


RUNS, ITEMS, BOUND = 500, 800, 0.03
LEVELS = tails(LOOKS, spend(LOOKS, 0.05))


def shares_of(drop: float, seed: int) -> tuple[dict[str, float], float]:
    """Shares of each answer over simulated runs with this true drop, and the mean share of items that were used."""
    rng = np.random.default_rng(seed)
    found = {"pass": 0, "fail": 0, "undecided": 0}
    used = 0
    for _ in range(RUNS):
        end = follow([simulated(rng, 0.06 + drop / 2, 0.06 - drop / 2, ITEMS)], BOUND)
        found[end.outcome] += 1
        used += end.samples
    return {k: v / RUNS for k, v in found.items()}, used / RUNS / ITEMS


def worst(rate: float) -> float:
    """A share of runs above this has a chance below 1 in 1000 if the true rate is `rate`; a point for small samples."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / RUNS) + 0.01


def test_at_its_bound_a_run_errs_as_rarely_as_one_that_looks_once():
    found, _ = shares_of(BOUND, seed=1)
    assert found["pass"] <= worst(0.05)
    assert found["fail"] <= worst(0.05)


def test_looking_often_without_a_plan_errs_more():
    """The claim above can fail: four plain looks at 5 % each err about twice as often."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(RUNS):
        baseline, artifact = simulated(rng, 0.06 + BOUND / 2, 0.06 - BOUND / 2, ITEMS)
        looks = [int(share * ITEMS) for share in LOOKS]
        wrong += any(
            decide(estimates.paired_drop([(baseline[:n], artifact[:n])]), "max", BOUND)[0] == "pass" for n in looks
        )
    assert wrong / RUNS > worst(0.05)


def test_a_clear_artifact_is_decided_early_and_rightly():
    good, used = shares_of(-0.03, seed=2)
    assert good["pass"] > 0.95
    assert used < 0.6
    bad, used = shares_of(0.12, seed=3)
    assert bad["fail"] > 0.95
    assert bad["pass"] == 0
    assert used < 0.5


def test_a_run_stops_at_the_first_look_that_decides_and_says_what_it_saw():
    ones, zeros = np.ones(400), np.zeros(400)
    end = follow([(ones, zeros)], 0.02)
    assert (end.look, end.samples, end.outcome) == (1, 100, "fail")
    assert end.estimate.interval is not None
    assert end.estimate.interval.confidence == pytest.approx(1 - 2 * LEVELS[0])
    last = follow([(ones, ones)], 0.0)
    assert (last.look, last.samples, last.outcome) == (4, 400, "undecided")


def test_every_task_gives_its_share_to_a_look():
    end = follow([(np.ones(400), np.zeros(400)), (np.ones(40), np.zeros(40))], 0.02)
    assert end.samples == 110
