from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.comparison import compare
from evals.measure import divergence
from evals.measure.divergence import TopK
from qpack.core.errors import EvaluateError
from tests.codes import coded
from tests.unit.evidence_samples import POSITIONS, TOP_K, WHOLE, WINDOWS, write_logprobs

SOME = settings(max_examples=60, deadline=None)


def top_k(logprobs: np.ndarray, k: int) -> TopK:
    """The k most probable tokens of full log-probabilities [positions, vocabulary], all in window 0."""
    ids = np.argsort(-logprobs, axis=1)[:, :k]
    return TopK(
        ids=ids.astype(np.int32),
        logprobs=np.take_along_axis(logprobs, ids, axis=1).astype(np.float32),
        window=np.zeros(len(ids), dtype=np.int32),
    )


def random_logprobs(seed: int, positions: int, vocabulary: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, sharpness, (positions, vocabulary))
    return (
        logits
        - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - logits.max(axis=1, keepdims=True)
    )


def true_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(axis=1)


shapes = st.tuples(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 40), st.floats(0.01, 12), st.floats(0, 3))


@SOME
@given(shapes)
def test_kl_is_never_negative_nor_above_the_true_divergence(shape: tuple[int, int, int, float, float]):
    seed, vocabulary, k, sharpness, noise = shape
    p = random_logprobs(seed, 16, vocabulary, sharpness)
    noisy = p + np.random.default_rng(seed + 1).normal(0, noise, p.shape)
    q = noisy - np.log(np.exp(noisy).sum(axis=1, keepdims=True))
    k = min(k, vocabulary)
    kl = divergence.kl_by_position(top_k(p, k), top_k(q, k))
    truth = true_kl(p, q)
    assert np.all(kl >= 0)
    assert np.all(kl <= truth + 2e-6 * (1 + truth))


@SOME
@given(shapes)
def test_a_model_does_not_diverge_from_itself(shape: tuple[int, int, int, float, float]):
    seed, vocabulary, k, sharpness, _ = shape
    top = top_k(random_logprobs(seed, 16, vocabulary, sharpness), min(k, vocabulary))
    assert np.all(divergence.kl_by_position(top, top) == 0)
    assert not divergence.flips_by_position(top, top).any()


@SOME
@given(st.integers(0, 10_000), st.integers(1, 19))
def test_a_longer_list_never_lowers_the_figure(seed: int, k: int):
    p, q = random_logprobs(seed, 16, 20, 2), random_logprobs(seed + 1, 16, 20, 2)
    short, long = (divergence.kl_by_position(top_k(p, n), top_k(q, n)) for n in (k, k + 1))
    assert np.all(long >= short - 1e-6)


def test_the_whole_vocabulary_gives_the_true_divergence():
    p, q = random_logprobs(1, 50, 12, 2), random_logprobs(2, 50, 12, 2)
    assert divergence.kl_by_position(top_k(p, 12), top_k(q, 12)) == pytest.approx(true_kl(p, q), rel=1e-3, abs=1e-5)


def test_a_worked_example():
    baseline = TopK(np.array([[5, 7]], np.int32), np.log([[0.6, 0.3]]).astype(np.float32), np.array([0], np.int32))
    artifact = TopK(np.array([[7, 9]], np.int32), np.log([[0.5, 0.2]]).astype(np.float32), np.array([0], np.int32))
    expected = 0.3 * math.log(0.3 / 0.5) + 0.7 * math.log(0.7 / 0.5)
    assert divergence.kl_by_position(baseline, artifact)[0] == pytest.approx(expected, rel=1e-5)
    assert divergence.flips_by_position(baseline, artifact).tolist() == [True]


def test_lists_that_hold_all_the_probability_do_not_make_it_infinite():
    certain = TopK(np.array([[1, 2]], np.int32), np.array([[0.0, -30.0]], np.float32), np.array([0], np.int32))
    unsure = TopK(np.array([[1, 3]], np.int32), np.log([[0.5, 0.4]]).astype(np.float32), np.array([0], np.int32))
    over_one = TopK(np.array([[1, 2]], np.int32), np.array([[1e-6, -9.0]], np.float32), np.array([0], np.int32))
    for p, q in ((certain, unsure), (unsure, certain), (over_one, unsure), (unsure, over_one)):
        assert 0 < divergence.kl_by_position(p, q)[0] < 20


def test_padding_is_no_common_token():
    padded = TopK(np.array([[1, -1]], np.int32), np.array([[-0.1, np.nan]], np.float32), np.array([0], np.int32))
    assert divergence.kl_by_position(padded, padded).tolist() == [0]


def test_long_texts_are_taken_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    p, q = top_k(random_logprobs(1, 103, 20, 2), 7), top_k(random_logprobs(2, 103, 20, 2), 7)
    whole = divergence.kl_by_position(p, q)
    monkeypatch.setattr(divergence, "_CELLS_AT_ONCE", 10 * 49)
    assert np.array_equal(divergence.kl_by_position(p, q), whole)


def test_estimates_say_how_they_were_made_and_count_windows(tmp_path: Path):
    baseline = divergence.load(write_logprobs(tmp_path / "b.npz"))
    artifact = divergence.load(write_logprobs(tmp_path / "a.npz", quantized=True))
    kl, flips = compare.of_sums(divergence.sums(baseline, artifact), TOP_K, seed=1)
    assert kl.samples == flips.samples == WINDOWS
    assert f"whole distributions at {WHOLE} of them" in kl.method
    assert f"top-{TOP_K}" in kl.method
    assert f"{WINDOWS * POSITIONS:,} positions" in kl.method
    assert kl.interval is not None
    assert 0 < kl.interval.low < kl.value < kl.interval.high
    assert flips.interval is not None
    assert 0 < flips.interval.low < flips.value < flips.interval.high < 1


def test_positions_that_do_not_correspond_are_refused(tmp_path: Path):
    whole = divergence.load(write_logprobs(tmp_path / "b.npz"))
    cut = TopK(whole.ids[:-1], whole.logprobs[:-1], whole.window[:-1])
    with pytest.raises(EvaluateError, check=coded("other-positions")):
        divergence.sums(whole, cut)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path):
    path = tmp_path / "logprobs.npz"
    with pytest.raises(EvaluateError, check=coded("log-probabilities"), match=r"logprobs\.npz"):
        divergence.load(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(EvaluateError, check=coded("log-probabilities"), match=r"logprobs\.npz"):
        divergence.load(path)
    np.savez(path, ids=np.zeros((2, 3), np.int32), window=np.zeros(2, np.int32))
    with pytest.raises(EvaluateError, check=coded("log-probabilities")):
        divergence.load(path)
    np.savez(path, ids=np.zeros((2, 3)), logprobs=np.zeros((2, 2)), window=np.zeros(2))
    with pytest.raises(EvaluateError, check=coded("log-probabilities")):
        divergence.load(path)


def test_a_model_that_computes_nan_is_reported_with_the_position(tmp_path: Path):
    path = tmp_path / "logprobs.npz"
    logprobs = np.full((3, 2), -1.0)
    logprobs[1, 0] = math.nan
    np.savez(path, ids=np.tile([1, 2], (3, 1)), logprobs=logprobs, window=np.zeros(3))
    with pytest.raises(EvaluateError, check=coded("log-probabilities"), match="1"):
        divergence.load(path)


@SOME
@given(shapes)
def test_the_tail_bounds_the_true_divergence_when_nothing_in_it_changed_more_than_what_is_listed(
    shape: tuple[int, int, int, float, float],
):
    seed, vocabulary, k, sharpness, noise = shape
    p = random_logprobs(seed, 16, vocabulary, sharpness)
    noisy = p + np.random.default_rng(seed + 1).normal(0, noise, p.shape)
    q = noisy - np.log(np.exp(noisy).sum(axis=1, keepdims=True))
    one, two = top_k(p, min(k, vocabulary)), top_k(q, min(k, vocabulary))
    listed = np.array([np.isin(np.arange(vocabulary), a) & np.isin(np.arange(vocabulary), b)
                       for a, b in zip(one.ids, two.ids, strict=True)])  # fmt: skip
    change = np.abs(p - q)
    most = np.where(listed, change, -1).max(axis=1)
    if bool(np.all(change <= most[:, None])):
        found = divergence.tail(one, two)
        assert found is not None
        assert found.kl_at_most >= true_kl(p, q).mean() - 1e-4 * (1 + sharpness)
        assert found.mass == pytest.approx(np.where(listed, 0, np.exp(p)).sum(axis=1).mean(), abs=1e-4)


def test_lists_that_hold_every_token_leave_nothing_open():
    p, q = random_logprobs(0, 30, 12, 2.0), random_logprobs(1, 30, 12, 2.0)
    one, two = top_k(p, 12), top_k(q, 12)
    found = divergence.tail(one, two)
    assert found is not None
    assert found.mass == pytest.approx(0, abs=1e-5)
    assert found.kl_at_most == pytest.approx(divergence.kl_by_position(one, two).mean(), rel=1e-4)


def test_the_bound_is_never_below_the_figure_that_it_bounds(tmp_path: Path):
    one = divergence.load(write_logprobs(tmp_path / "b.npz"))
    two = divergence.load(write_logprobs(tmp_path / "a.npz", quantized=True))
    found = divergence.tail(one, two)
    assert found is not None
    assert found.kl_at_most >= divergence.kl_by_position(one, two).mean()
    assert 0 < found.mass < 1


def test_the_worst_positions_are_the_most_different_of_different_windows_and_can_be_read(tmp_path: Path):
    one = divergence.load(write_logprobs(tmp_path / "b.npz"))
    two = divergence.load(write_logprobs(tmp_path / "a.npz", quantized=True))
    found = divergence.worst(one, two, divergence.spelling(tmp_path / "b.npz"), count=5)
    kl = divergence.kl_by_position(one, two)
    assert found[0].kl == kl.max()
    assert [p.kl for p in found] == sorted((p.kl for p in found), reverse=True)
    assert len({p.window for p in found}) == 5
    place = int(kl.argmax())
    assert one.actual is not None
    assert found[0].actual == f" w{one.actual[place]}"
    start = place - place % POSITIONS
    expected = "".join(f" w{i}" for i in one.actual[max(start, place - 40) : place])
    assert found[0].context == expected
    assert found[0].baseline[0].text == f" w{one.ids[place, 0]}"
    assert [x.probability for x in found[0].artifact] == sorted(
        (x.probability for x in found[0].artifact), reverse=True
    )


def test_without_the_actual_tokens_or_their_spelling_nothing_breaks(tmp_path: Path):
    one = divergence.load(write_logprobs(tmp_path / "b.npz"))
    assert divergence.worst(TopK(one.ids, one.logprobs, one.window), one, {}) == ()
    assert divergence.worst(one, one, {})[0].actual.startswith("<")
    assert divergence.spelling(tmp_path / "elsewhere" / "b.npz") == {}
