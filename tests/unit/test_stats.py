from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evals.stats import estimates as stats
from qpack.core.records import Estimate

SOME = settings(max_examples=25, deadline=None)


def scores(*values: float) -> stats.Floats:
    return np.array(values, dtype=np.float64)


def paired(size: int, lost: int, gained: int = 0) -> tuple[stats.Floats, stats.Floats]:
    """Half of the items right under the baseline; the artifact loses and gains as many as told."""
    baseline = np.zeros(size)
    baseline[: size // 2] = 1
    artifact = baseline.copy()
    artifact[:lost] = 0
    artifact[size - gained :] = 1 if gained else artifact[size:]
    return baseline, artifact


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval.low, estimate.interval.high


def covered(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in map(bounds, estimates)]))


def test_a_drop_is_baseline_minus_artifact():
    estimate = stats.paired_drop([paired(200, lost=30, gained=10)])
    assert estimate.value == pytest.approx(20 / 200)
    assert estimate.samples == 200
    low, high = bounds(estimate)
    assert low < 0.1 < high
    assert "Tango" in estimate.method


def test_scores_between_right_and_wrong_are_bootstrapped():
    baseline, artifact = paired(200, lost=30, gained=10)
    assert "BCa" in stats.paired_drop([(baseline * 0.5, artifact * 0.5)]).method


def test_the_bootstrap_interval_agrees_with_the_normal_one_on_many_items():
    baseline, artifact = (scores * 0.9 for scores in paired(2000, lost=200, gained=120))
    low, high = bounds(stats.paired_drop([(baseline, artifact)]))
    d = baseline - artifact
    half = 1.645 * d.std(ddof=1) / math.sqrt(len(d))
    assert low == pytest.approx(d.mean() - half, abs=0.002)
    assert high == pytest.approx(d.mean() + half, abs=0.002)


def test_tasks_weigh_the_same_whatever_their_size():
    estimate = stats.paired_drop([paired(1000, lost=100), paired(100, lost=0)])
    assert estimate.value == pytest.approx((0.1 + 0.0) / 2)


def test_no_discordant_pair_gives_the_rule_of_three_and_not_a_zero_width():
    baseline, _ = paired(500, lost=0)
    low, high = bounds(stats.paired_drop([(baseline, baseline)]))
    assert high == pytest.approx(1 - 0.05 ** (1 / 500))
    assert low == -high
    assert "exact" in stats.paired_drop([(baseline, baseline)]).method


def test_items_that_all_change_alike_do_not_give_a_zero_width():
    low, high = bounds(stats.paired_drop([(np.ones(12), np.zeros(12))]))
    assert low < 1 == high


def test_no_discordant_pair_in_several_tasks_is_bounded_by_all_their_items():
    ones = np.ones(200)
    _, high = bounds(stats.paired_drop([(ones, ones)] * 3))
    assert high == pytest.approx(1 - 0.05 ** (1 / 600))
    _, uneven = bounds(stats.paired_drop([(ones, ones), (np.ones(20), np.ones(20))]))
    assert uneven > 1 - 0.05 ** (1 / 220), "a rate in the small task weighs more than its items"


def test_scores_without_a_range_and_without_a_change_leave_the_drop_open():
    same = scores(3.5, 12.0, 7.0)
    assert bounds(stats.paired_drop([(same, same)])) == (-math.inf, math.inf)


def test_no_items_is_not_a_number():
    estimate = stats.paired_drop([(scores(), scores())])
    assert math.isnan(estimate.value)
    assert (estimate.samples, estimate.interval) == (0, None)
    assert math.isnan(stats.paired_drop([]).value)


def test_scores_that_are_not_finite_are_reported_as_such():
    estimate = stats.paired_drop([(scores(1, 0), scores(math.nan, 0))])
    assert math.isnan(estimate.value)
    assert estimate.interval is None


def test_arrays_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="paired scores"):
        stats.paired_drop([(scores(1, 0), scores(1))])
    with pytest.raises(ValueError, match="one shape"):
        stats.perplexity_ratio(scores(1, 2), scores(1, 2), scores(1))


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.1])
def test_intervals_of_the_drop_hold_the_truth_about_as_often_as_they_say(rate: float):
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(60):
        change = rng.random(400)
        baseline = np.where(change < rate, 1.0, np.where(change < 1.5 * rate, 0.0, 0.5))
        artifact = np.where(change < rate, 0.0, np.where(change < 1.5 * rate, 1.0, 0.5))
        estimates.append(stats.paired_drop([(baseline, artifact)]))
    assert covered(estimates, rate / 2) >= 0.8


@SOME
@given(st.integers(20, 300), st.integers(0, 20), st.integers(0, 20), st.integers(0, 3))
def test_swapping_the_models_turns_the_drop_around(size: int, lost: int, gained: int, seed: int):
    baseline, artifact = paired(size, min(lost, size // 2), min(gained, size // 2))
    there = stats.paired_drop([(baseline, artifact)], seed=seed)
    back = stats.paired_drop([(artifact, baseline)], seed=seed)
    assert there.value == pytest.approx(-back.value)
    (low, high), (other_low, other_high) = bounds(there), bounds(back)
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=2.5 / size + 1e-9)
    assert low <= there.value <= high


def test_the_seed_decides_the_interval():
    one, two = paired(300, lost=31, gained=17)
    pair = one * 0.7, two * 0.7
    assert stats.paired_drop([pair], seed=3) != stats.paired_drop([pair], seed=4)
    assert stats.paired_drop([pair], seed=3) == stats.paired_drop([pair], seed=3)


def test_more_confidence_is_a_wider_interval():
    pair = paired(300, lost=30, gained=10)
    low, high = bounds(stats.paired_drop([pair], confidence=0.90))
    wider_low, wider_high = bounds(stats.paired_drop([pair], confidence=0.99))
    assert wider_low < low
    assert high < wider_high


def test_perplexity_is_over_tokens_and_not_over_windows():
    nll, tokens = scores(10, 300), scores(10, 100)
    assert stats.perplexity(nll, tokens) == pytest.approx(math.exp(310 / 110))
    assert math.isnan(stats.perplexity(scores(), scores()))
    estimate = stats.perplexity_ratio(nll, nll * 1.1, tokens)
    assert estimate.value == pytest.approx(math.exp(31 / 110))


def test_perplexity_ratio_of_a_known_shift():
    rng = np.random.default_rng(0)
    tokens = np.full(60, 100.0)
    base = rng.normal(3, 0.5, 60) * tokens
    estimate = stats.perplexity_ratio(base, base + rng.normal(0.1, 0.05, 60) * tokens, tokens)
    low, high = bounds(estimate)
    assert low < math.exp(0.1) < high
    assert high - low < 0.05, "pairing takes the spread between windows out"
    assert estimate.samples == 60


@pytest.mark.parametrize("windows", [3, 9, 25])
def test_intervals_over_few_windows_hold_the_truth_about_as_often_as_they_say(windows: int):
    rng = np.random.default_rng(windows)
    tokens = np.full(windows, 50.0)
    estimates = [
        stats.perplexity_ratio(np.zeros(windows), rng.normal(0.2, 0.1, windows) * tokens, tokens) for _ in range(80)
    ]
    assert covered(estimates, math.exp(0.2)) >= 0.8


def test_one_window_leaves_the_figure_open():
    assert bounds(stats.perplexity_ratio(scores(10), scores(11), scores(5))) == (0, math.inf)
    assert bounds(stats.mean_by_window(scores(0.1, 0.2), np.array([0, 0]))) == (0, math.inf)
    assert bounds(stats.rate_by_window(np.array([True, False]), np.array([0, 0]))) == (0, 1)


def test_windows_that_agree_exactly_have_no_noise():
    nll, tokens = scores(10, 30, 20), scores(5, 10, 8)
    estimate = stats.perplexity_ratio(nll, nll, tokens)
    assert (estimate.value, estimate.interval) == (1, None)


def test_an_infinite_loss_is_an_infinite_ratio_and_nothing_breaks():
    tokens = np.full(12, 5.0)
    nll = np.arange(12.0)
    broken = nll.copy()
    broken[3] = math.inf
    assert stats.perplexity_ratio(nll, broken, tokens).value == math.inf
    assert math.isnan(stats.perplexity_ratio(broken, broken, tokens).value)


def test_a_rate_resamples_whole_windows():
    window = np.repeat(np.arange(20), 50)
    together = window < 4
    spread = np.random.default_rng(0).permutation(together)
    wide, narrow = (bounds(stats.rate_by_window(events, window)) for events in (together, spread))
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_a_rate_that_is_the_same_in_every_window_still_has_noise():
    events = np.arange(1000) % 5 == 0
    low, high = bounds(stats.rate_by_window(events, np.repeat(np.arange(20), 50)))
    assert 0.17 < low < 0.2 < high < 0.23


def test_a_rate_without_an_event_has_the_rule_of_three():
    low, high = bounds(stats.rate_by_window(np.zeros(1000, dtype=bool), np.repeat(np.arange(20), 50)))
    assert low == 0
    assert high == pytest.approx(3 / 1000, rel=0.01)


@SOME
@given(st.integers(2, 30), st.floats(0, 1), st.integers(0, 1000))
def test_a_rate_and_its_interval_stay_between_0_and_1(windows: int, share: float, seed: int):
    events = np.random.default_rng(seed).random(windows * 7) < share
    estimate = stats.rate_by_window(events, np.repeat(np.arange(windows), 7))
    assert 0 <= estimate.value <= 1
    if estimate.interval:
        assert 0 <= estimate.interval.low <= estimate.value <= estimate.interval.high <= 1


def test_clopper_pearson_is_the_textbook_interval():
    for events, trials in ((0, 10), (3, 10), (10, 10), (7, 200)):
        expected = scipy_stats.binomtest(events, trials).proportion_ci(0.9, method="exact")
        assert stats.clopper_pearson(events, trials, 0.05) == pytest.approx((expected.low, expected.high))


def test_ratio_of_runs_is_of_geometric_means_with_a_welch_interval():
    baseline, artifact = scores(300, 305, 310), scores(200, 203, 199)
    estimate = stats.ratio_of_runs(baseline, artifact)
    assert estimate.value == pytest.approx((200 * 203 * 199) ** (1 / 3) / (300 * 305 * 310) ** (1 / 3))
    expected = scipy_stats.ttest_ind(np.log(artifact), np.log(baseline), equal_var=False).confidence_interval(0.9)
    assert bounds(estimate) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))


@SOME
@given(st.lists(st.floats(1, 1000), min_size=2, max_size=5), st.lists(st.floats(1, 1000), min_size=2, max_size=5))
def test_swapping_the_sides_inverts_a_ratio(one: list[float], two: list[float]):
    there, back = stats.ratio_of_runs(scores(*one), scores(*two)), stats.ratio_of_runs(scores(*two), scores(*one))
    assert there.value == pytest.approx(1 / back.value)
    assert (there.interval is None) == (back.interval is None)
    if there.interval and back.interval:
        assert there.interval.low == pytest.approx(1 / back.interval.high, rel=1e-6)


def test_one_run_a_side_has_no_interval():
    estimate = stats.ratio_of_runs(scores(300), scores(240, 250))
    assert estimate.interval is None
    assert estimate.samples == 1


def test_runs_without_output_do_not_pass_for_numbers():
    assert stats.ratio_of_runs(scores(300, 310), scores(0, 250)).value == pytest.approx(125 / 305)
    assert math.isnan(stats.ratio_of_runs(scores(0, 310), scores(200, 250)).value)
    assert math.isnan(stats.ratio_of_runs(scores(300), scores(math.nan)).value)
    assert stats.ratio_of_runs(scores(), scores(1)).samples == 0


def test_mcnemar_counts_lost_and_gained_and_is_exact():
    baseline, artifact = paired(100, lost=9, gained=1)
    assert stats.mcnemar(baseline, artifact) == (9, 1, pytest.approx(2 * (1 + 10) / 2**10))
    assert stats.mcnemar(baseline, baseline) == (0, 0, 1)
