"""Claims about two servers that are loaded in turn: what cancels, what the interval is made of, what a gate does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison import speculative
from evals.comparison.compare import compare
from evals.gates.gates import judge
from evals.measure import interleave
from evals.report.speed_tables import how_paired
from evals.stats import estimates
from qpack.core.speed import Drafts, Interleaved, Percentiles, Round, Run, Turns
from tests.unit.evidence_samples import evidence, make_release, memory, sides, write_logprobs

positive = st.floats(1e-3, 1e3)


def run(rate: float, *, failed: int = 0, ttft: float = 20.0) -> Run:
    times = Percentiles(mean=ttft, p50=ttft, p90=ttft, p95=ttft, p99=ttft)
    return Run(
        seconds=128 / rate, completed=4, failed=failed, input_tokens=256, output_tokens=128,
        requests_per_second=rate / 32, output_tokens_per_second=rate, total_tokens_per_second=3 * rate, good=None,
        ttft_ms=times, inter_token_ms=times, time_per_output_token_ms=times, end_to_end_ms=times,
    )  # fmt: skip


def turns(reference: list[float], subject: list[float], **more: int) -> Turns:
    pairs = enumerate(zip(reference, subject, strict=True))
    rounds = tuple(Round(subject_first=i % 2 == 1, reference=run(b), subject=run(a, **more)) for i, (b, a) in pairs)
    return Turns(concurrency=4, input_tokens=64, output_tokens=32, rounds=rounds)


@given(st.lists(st.tuples(positive, positive, positive), min_size=2, max_size=12))
def test_what_slows_both_runs_of_a_round_alike_changes_nothing(rounds: list[tuple[float, float, float]]):
    b, a, machine = (np.array(column) for column in zip(*rounds, strict=True))
    quiet, busy = estimates.ratio_of_rounds(b, a), estimates.ratio_of_rounds(b * machine, a * machine)
    assert busy.value == pytest.approx(quiet.value, rel=1e-9)
    if quiet.interval and busy.interval:
        assert busy.interval.low == pytest.approx(quiet.interval.low, rel=1e-6)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=12))
def test_the_ratio_the_other_way_round_is_its_inverse(rounds: list[tuple[float, float]]):
    b, a = (np.array(column) for column in zip(*rounds, strict=True))
    there, back = estimates.ratio_of_rounds(b, a), estimates.ratio_of_rounds(a, b)
    assert there.value * back.value == pytest.approx(1, rel=1e-9)


def test_in_turn_the_interval_holds_the_truth_on_a_machine_that_changes_and_apart_it_does_not():
    random, truth, held_in_turn, held_apart = np.random.default_rng(3), 0.7, 0, 0
    for _ in range(400):
        # Log speed of the machine wanders; each run adds a little of its own.
        machine = np.cumsum(random.normal(0, 0.08, 12))
        noise = random.normal(0, 0.03, 12)
        reference, subject = np.exp(machine[0::2] + noise[0::2]), truth * np.exp(machine[0::2] + noise[1::2])
        found = estimates.ratio_of_rounds(reference, subject).interval
        assert found is not None
        held_in_turn += found.low <= truth <= found.high
        apart = estimates.ratio_of_runs(
            np.exp(machine[:6] + noise[:6]), truth * np.exp(machine[6:] + noise[6:])
        ).interval
        assert apart is not None
        held_apart += apart.low <= truth <= apart.high
    assert held_in_turn / 400 == pytest.approx(0.9, abs=0.04)
    assert held_apart / 400 < 0.7


def test_one_round_or_rounds_that_agree_have_no_interval_and_a_dead_one_no_figure():
    assert estimates.ratio_of_rounds(np.array([2.0]), np.array([1.0])).interval is None
    assert estimates.ratio_of_rounds(np.array([2.0, 4.0]), np.array([1.0, 2.0])).interval is None
    assert math.isnan(estimates.ratio_of_rounds(np.array([2.0, 4.0]), np.array([1.0, 0.0])).value)


@pytest.fixture
def logprobs(tmp_path: Path) -> tuple[Path, Path]:
    return write_logprobs(tmp_path / "b.npz"), write_logprobs(tmp_path / "a.npz", quantized=True)


def test_the_gates_on_speed_use_the_rounds_and_count_their_failed_requests(logprobs: tuple[Path, Path]):
    both = Interleaved(tool="t", levels=(turns([100, 110, 90, 100], [80, 89, 71, 81], failed=1),))
    artifact = evidence(quantized=True)
    found = compare(*sides(evidence(), artifact, logprobs), interleaved=both)
    assert found.apart is None
    assert [speed.concurrency for speed in found.speed] == [4]
    bounds = {"throughput_ratio": 0.75, "ttft_ratio": 1.1, "failed_requests": 0}
    gates = {gate.gate: gate for gate in judge(found, artifact, bounds).gates}
    assert gates["throughput_ratio[4]"].outcome == "pass"
    assert "loaded in turn" in gates["throughput_ratio[4]"].estimate.method
    assert gates["ttft_ratio[4]"].estimate.value == 1.0
    assert gates["failed_requests"].outcome == "fail"
    assert gates["failed_requests"].estimate.value == 4


def test_models_that_did_not_fit_together_are_compared_apart_and_it_is_said(logprobs: tuple[Path, Path]):
    apart = Interleaved(tool="none", levels=(), apart="no room")
    found = compare(*sides(evidence(), evidence(quantized=True), logprobs), interleaved=apart)
    assert found.apart == "no room"
    assert found.speed == compare(*sides(evidence(), evidence(quantized=True), logprobs)).speed
    assert all("Welch" in speed.throughput.method for speed in found.speed)


def test_how_both_were_loaded_is_said(tmp_path: Path):
    assert "one after the other" in how_paired(make_release(tmp_path))
    assert "loaded in turn, 3 rounds" in how_paired(make_release(tmp_path, rounds=3))


def test_a_second_server_has_to_fit_beside_the_first():
    held = memory(quantized=False)
    assert interleave.too_large(held.model_copy(update={"peak_resident_bytes": 0}), lambda: 0) is None
    huge = interleave.too_large(held.model_copy(update={"peak_resident_bytes": 2**50}), lambda: 0)
    assert huge is not None
    assert "GiB more of the machine's memory" in huge
    on_gpu = held.model_copy(update={"weights_loaded_bytes": 15 * 2**30, "kv_cache_bytes": 2**30})
    assert interleave.too_large(on_gpu, lambda: 20 * 2**30) is None
    told = interleave.too_large(on_gpu, lambda: 19 * 2**30)
    assert told is not None
    assert "20.0 GiB more of the accelerator's memory, and 19.0 GiB are free" in told


def drafted(rate: float, accepted: int) -> Run:
    return run(rate).model_copy(update={"drafts": Drafts(drafts=100, draft_tokens=400, accepted_tokens=accepted)})


def test_a_draft_is_read_as_vllm_defines_it_and_its_gain_is_over_the_server_without_it():
    pairs = [(50, 60, 40), (52, 60, 80), (48, 62, 120)]
    rounds = tuple(Round(subject_first=False, reference=run(b), subject=drafted(a, n)) for b, a, n in pairs)
    levels = (Turns(concurrency=1, input_tokens=64, output_tokens=32, rounds=rounds),)
    (found,) = speculative.read(Interleaved(tool="t", levels=levels))
    assert found.acceptance_rate == pytest.approx(240 / 1200)
    assert found.accepted_length == pytest.approx(1 + 240 / 300)
    assert found.gain.throughput.value == pytest.approx((60 * 60 * 62 / (50 * 52 * 48)) ** (1 / 3))
    assert speculative.sentence(found).startswith(
        "1 at once: 20% of the drafted tokens accepted, 1.80 tokens per step; 60.7 "
    )


def test_a_server_that_drafted_nothing_has_no_acceptance():
    assert speculative.accepted([run(1.0)]) == (None, None)
    (found,) = speculative.read(Interleaved(tool="t", levels=(turns([1, 2], [2, 3]),)))
    assert speculative.sentence(found) == "4 at once: no drafted tokens"
