"""Claims about the estimate of the whole-vocabulary divergence: every position alike, no bias, honest intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.comparison import recheck
from evals.measure import divergence
from evals.measure.divergence import TopK
from evals.stats import divergence_estimate, estimates
from evals.stats.divergence_estimate import LOWER_BOUND, WHOLE, choose, mean_divergence, window_sums
from qpack.core.findings import Divergences
from tests.unit.evidence_samples import make_release

SOME = settings(max_examples=60, deadline=None)


class Text:
    """Made-up windows: bounds, covariates and what the divergence is above the bound, with effects of windows, skew,
    and a rest that doesn't follow the covariates closely.
    """

    def __init__(self, seed: int, windows: int = 40, positions: int = 100) -> None:
        random = np.random.default_rng(seed)
        size = (windows, positions)
        level = random.lognormal(0, 0.3, (windows, 1))
        mass = random.beta(0.7, 3, size)
        missing = np.clip(0.25 * level + random.normal(0, 0.05, size), 0, 1)
        self.bound = (random.exponential(0.1, size) * level).ravel()
        self.rest = (level * mass * (0.1 + missing) * random.lognormal(-0.5, 0.8, size)).ravel()
        self.covariates = np.stack([mass.ravel(), (mass * missing).ravel()], axis=1)
        self.flips = (random.random(size) < 0.2).ravel()
        self.window = np.repeat(np.arange(windows), positions).astype(np.int32)
        self.lengths = [positions] * windows

    @property
    def truth(self) -> float:
        return float((self.bound + self.rest).mean())

    def sums(self, count: int, seed: int) -> Divergences:
        at = choose(self.lengths, count, seed).astype(np.int32)
        rows = window_sums(self.window, self.flips, self.bound, self.covariates, at, self.rest[at])
        return Divergences(estimator=WHOLE, windows=rows)


@SOME
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 400), st.integers(0, 1000))
def test_positions_are_drawn_once_each_and_as_many_as_asked(lengths: list[int], count: int, seed: int):
    at = choose(lengths, count, seed)
    assert len(at) == len(set(at.tolist())) == min(count, sum(lengths))
    assert at.tolist() == sorted(at.tolist())
    assert set(at.tolist()) <= set(range(sum(lengths)))


def test_every_position_is_as_likely_to_be_drawn():
    lengths = [5, 40, 11, 1, 23]
    seen = np.zeros(sum(lengths))
    for seed in range(4000):
        seen[choose(lengths, 16, seed)] += 1
    # 4000 draws of probability 0.2: a standard deviation of 25; four of them for 80 positions.
    assert np.abs(seen - 800).max() < 110


def test_the_estimate_is_unbiased_over_draws_and_nearer_than_the_sample_alone(monkeypatch: pytest.MonkeyPatch):
    text = Text(1)
    monkeypatch.setattr(estimates, "RESAMPLES", 9)
    found = np.array([mean_divergence(text.sums(128, seed)).value for seed in range(400)])
    plain = np.array([(text.bound + text.rest)[choose(text.lengths, 128, seed)].mean() for seed in range(400)])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - text.truth) < 4 * error + 0.003 * text.truth
    assert found.std() < 0.75 * plain.std()


def test_ninety_percent_intervals_hold_the_truth_about_nine_times_in_ten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimates, "RESAMPLES", 499)
    truth = np.mean([Text(seed + 10_000, windows=400).truth for seed in range(10)])
    held = 0
    for seed in range(200):
        interval = mean_divergence(Text(seed).sums(128, seed), seed=seed).interval
        assert interval is not None
        held += interval.low <= truth <= interval.high
    # A binomial of 200 at 0.9 is between 0.83 and 0.96 in 99.7 of 100 runs.
    assert 0.83 <= held / 200 <= 0.96


def test_few_windows_get_a_wider_interval_and_one_window_an_unbounded_one():
    wide = mean_divergence(Text(3, windows=4).sums(64, 0)).interval
    narrow = mean_divergence(Text(3, windows=40).sums(64, 0)).interval
    alone = mean_divergence(Text(3, windows=1).sums(64, 0)).interval
    assert wide is not None
    assert narrow is not None
    assert alone is not None
    assert wide.high - wide.low > narrow.high - narrow.low
    assert (alone.low, alone.high) == (0.0, math.inf)


def test_all_positions_known_give_the_divergence_itself():
    text = Text(4)
    assert mean_divergence(text.sums(10**6, 0)).value == pytest.approx(text.truth, rel=1e-9)


def test_the_same_in_each_window_has_no_noise():
    text = Text(5)
    text.bound[:] = text.rest[:] = 0.0
    found = mean_divergence(text.sums(128, 0))
    assert (found.value, found.interval) == (0.0, None)


def test_version_one_is_the_lower_bound_and_an_unknown_version_is_refused():
    rows = Text(6).sums(128, 0).windows
    first = mean_divergence(Divergences(estimator=LOWER_BOUND, windows=rows))
    assert first.value == pytest.approx(Text(6).bound.mean())
    assert "lower bound" in first.method
    with pytest.raises(ValueError, match="estimator 9"):
        mean_divergence(Divergences(estimator=9, windows=rows))


def test_lists_and_whole_distributions_of_two_models_give_their_divergence():
    """From log-probabilities as a server gives them, against the divergence over the whole vocabulary."""
    random = np.random.default_rng(7)
    p = random.normal(0, 2.5, (2_000, 500))
    q = p + random.normal(0, 0.5, p.shape) * random.lognormal(0, 0.4, (2_000, 1))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    truth = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    window = np.repeat(np.arange(40), 50).astype(np.int32)
    at = choose([50] * 40, 256, 0).astype(np.int32)

    def lists(x: np.ndarray) -> TopK:
        ids = np.argsort(-x, axis=1)[:, :16].astype(np.int32)
        top = np.take_along_axis(x, ids, axis=1).astype(np.float32)
        return TopK(ids, top, window, None, at, x[at].astype(np.float32))

    sums = divergence.sums(lists(p), lists(q))
    found = mean_divergence(sums)
    assert found.value == pytest.approx(truth, rel=0.05)
    assert found.interval is not None
    assert found.interval.low <= truth <= found.interval.high
    assert divergence_estimate.lower_bound(sums.windows).value < 0.8 * truth


def test_parts_of_the_text_keep_their_own_whole_distributions():
    random = np.random.default_rng(8)
    window = np.repeat(np.arange(6), 10).astype(np.int32)
    at = choose([10] * 6, 20, 0).astype(np.int32)
    whole = random.normal(-5, 1, (20, 30)).astype(np.float32)
    ids, lists = np.tile(np.arange(4, dtype=np.int32), (60, 1)), np.full((60, 4), -2, np.float32)
    top = TopK(ids, lists, window, None, at, whole)
    for span in (range(2), range(2, 6)):
        own = divergence.part(top, span)
        first = span.start * 10
        kept = (at >= first) & (at < span.stop * 10)
        assert own.whole_at.tolist() == (at[kept] - first).tolist()
        assert np.array_equal(own.whole, whole[kept])


def test_a_divergence_that_its_sums_do_not_give_is_named_and_an_old_release_is_read_as_what_it_was(tmp_path: Path):
    release = make_release(tmp_path)
    assert recheck.figures(release, 0) == ()
    told = release.comparison
    assert told.kl_label == "KL divergence, nats"
    less = told.kl_divergence.model_copy(update={"value": told.kl_divergence.value * 0.9})
    changed = release.model_copy(update={"comparison": told.model_copy(update={"kl_divergence": less})})
    assert recheck.figures(changed, 0)[0].startswith("kl_divergence.value")
    assert told.divergences is not None
    rows = told.divergences.windows
    fewer = told.divergences.model_copy(update={"windows": (rows[0].model_copy(update={"sampled": 0}), *rows[1:])})
    forged = release.model_copy(update={"comparison": told.model_copy(update={"divergences": fewer})})
    assert any("whole distribution was asked for" in why for why in recheck.figures(forged, 0))

    bound = divergence_estimate.lower_bound(rows)
    old = told.model_copy(update={"divergences": None, "chance_flips": None, "kl_divergence": bound})
    assert old.kl_label == "KL divergence, nats (lower bound)"
    assert recheck.figures(release.model_copy(update={"comparison": old}), 0) == ()
