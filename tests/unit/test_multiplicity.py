"""Claims about several gates at once: laws of Holm's procedure, and how often the rule errs over simulated builds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.gates.gates import decide
from evals.gates.multiplicity import holm, p_beyond, samples_to_fail
from evals.stats import estimates
from tests.unit.evidence_samples import estimate

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm_is_the_textbook_example():
    # Four hypotheses: 0.01 x 4, 0.03 x 2 (raised to 0.06), 0.04 x 1 (raised to 0.06), 0.005 x 4 first.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()


@given(p_values)
def test_holm_never_makes_a_p_value_smaller_and_keeps_their_order(raw: list[float]):
    adjusted = holm(raw)
    assert all(p <= q <= 1 for p, q in zip(raw, adjusted, strict=True))
    by_raw = [adjusted[i] for i in sorted(range(len(raw)), key=lambda i: raw[i])]
    assert by_raw == sorted(by_raw)
    assert max(adjusted) <= min(1, len(raw) * max(raw))


@given(p_values, st.randoms())
def test_holm_does_not_depend_on_the_order_of_the_gates(raw: list[float], random: object):
    order = list(range(len(raw)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = holm([raw[i] for i in order])
    assert [moved[order.index(i)] for i in range(len(raw))] == list(holm(raw))


@given(
    st.floats(-1, 1), st.floats(0.001, 1), st.floats(0.001, 1), st.floats(-1, 1), st.integers(2, 5000),
    st.sampled_from(["max", "min"]),
)  # fmt: skip
def test_one_gate_fails_exactly_when_its_p_value_is_at_most_one_end_of_its_interval(
    value: float, below: float, above: float, bound: float, samples: int, kind: str
):
    figures = estimate(value, value - below, value + above, samples)
    p = p_beyond(figures, kind, bound)
    end = figures.interval.low if kind == "max" else figures.interval.high  # type: ignore[union-attr]
    if p is not None and not math.isclose(end, bound, rel_tol=1e-6, abs_tol=1e-9):
        assert (decide(figures, kind, bound)[0] == "fail") == (p <= 0.05 + 1e-12)


def test_a_ratio_has_the_same_p_value_upside_down():
    there = p_beyond(estimate(1.2, 1.1, 1.2**2 / 1.1, 40), "max", 1.05, logarithmic=True)
    back = p_beyond(estimate(1 / 1.2, 1.1 / 1.2**2, 1 / 1.1, 40), "min", 1 / 1.05, logarithmic=True)
    assert there == pytest.approx(back)


def test_few_runs_are_less_sure_than_many_with_the_same_interval():
    few, many = (p_beyond(estimate(0.9, 0.8, 1.0, n), "max", 0.7) for n in (3, 300))
    assert few is not None
    assert many is not None
    assert few > 2 * many


def test_a_figure_without_noise_or_without_sense_has_no_p_value():
    assert p_beyond(estimate(0.4), "max", 0.5) is None
    assert p_beyond(estimate(math.nan, 0, 1), "max", 0.5) is None
    assert p_beyond(estimate(0.4, 0.3, 0.5, samples=0), "max", 0.5) is None
    assert p_beyond(estimate(0.4, 0.4, 0.5), "max", 0.3) == 0.0
    assert p_beyond(estimate(0.4, 0.4, 0.5), "max", 0.5) == 1.0


@given(st.floats(0.001, 0.049), st.integers(2, 20), st.integers(5, 5000))
def test_with_the_samples_asked_for_the_figure_would_fail_among_all(p: float, tests: int, samples: int):
    needed = samples_to_fail(estimate(0.0, -0.1, 0.1, samples), p, tests)
    if needed is None:
        return
    from scipy import stats as scipy_stats

    assert needed > samples
    grown = scipy_stats.t.isf(p, samples - 1) * math.sqrt(needed / samples)
    assert needed == samples + 1 or scipy_stats.t.sf(grown, samples - 1) <= 0.05 / tests * 1.001


def simulated(
    rng: np.random.Generator, lost: float, gained: float, items: int
) -> tuple[estimates.Floats, estimates.Floats]:
    """Right and wrong answers of a baseline and an artifact that loses and gains these shares of all items."""
    draws = rng.random(items)
    changed_down, changed_up = draws < lost, (draws >= lost) & (draws < lost + gained)
    same = (rng.random(items) < 0.5).astype(np.float64)
    return np.where(changed_down, 1.0, np.where(changed_up, 0.0, same)), np.where(
        changed_down, 0.0, np.where(changed_up, 1.0, same)
    )


BOUND, ITEMS, BUILDS = 0.02, 310, 600


def worst(builds: int) -> float:
    """The chance of a larger share of wrong answers is below 1 in 1000 if each build errs with 5 % (normal), and one
    point for what an interval from few items is off by.
    """
    return 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / builds) + 0.01


def outcomes(drop: float, seed: int) -> dict[str, float]:
    """Shares of pass, fail and undecided when the true drop is `drop` and about one item in eight changes."""
    rng = np.random.default_rng(seed)
    found = {"pass": 0, "fail": 0, "undecided": 0}
    for _ in range(BUILDS):
        pair = simulated(rng, 0.06 + drop / 2, 0.06 - drop / 2, ITEMS)
        found[decide(estimates.paired_drop([pair]), "max", BOUND)[0]] += 1
    return {outcome: count / BUILDS for outcome, count in found.items()}


def test_at_its_bound_a_gate_passes_or_fails_wrongly_in_about_one_build_of_20_each():
    found = outcomes(BOUND, seed=1)
    assert found["pass"] <= worst(BUILDS)
    assert found["fail"] <= worst(BUILDS)
    assert found["undecided"] > 0.8


def test_a_clear_case_is_decided_and_the_right_way_round():
    assert outcomes(-0.05, seed=2)["pass"] > 0.6, "an artifact that gains five points passes a ceiling of two"
    worse = outcomes(0.11, seed=3)
    assert worse["fail"] > 0.9
    assert worse["pass"] == 0


def test_with_ten_gates_at_their_bounds_holm_keeps_the_chance_of_any_false_failure():
    rng = np.random.default_rng(4)
    builds, gates = 200, 10
    alone = together = 0
    for _ in range(builds):
        figures = [estimates.paired_drop([simulated(rng, 0.07, 0.05, ITEMS)]) for _ in range(gates)]
        raw = [p_beyond(figure, "max", BOUND) for figure in figures]
        p = [value for value in raw if value is not None]
        alone += min(p) <= 0.05
        together += min(holm(p)) <= 0.05
    assert alone / builds > 0.25, "uncorrected, ten gates fail a good artifact often"
    assert together / builds <= worst(builds)


def test_mcnemars_test_keeps_its_level_when_nothing_is_better_and_finds_what_is():
    rng = np.random.default_rng(5)
    same = [estimates.mcnemar(*simulated(rng, 0.06, 0.06, ITEMS))[2] for _ in range(1000)]
    assert np.mean(np.array(same) <= 0.05) <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 1000), "an exact test may be shy"
    worse = [estimates.mcnemar(*simulated(rng, 0.12, 0.04, ITEMS))[2] for _ in range(200)]
    assert np.mean(np.array(worse) <= 0.05) > 0.8
