"""Percentiles of raw times, and answers that can't be compared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import latency
from qpack.errors import EvaluateError


def raw(**changes: Any) -> dict[str, Any]:
    """One level with one run: two requests of three tokens each in half a second."""
    run = {
        "seconds": 0.5,
        "completed": 2,
        "failed": 1,
        "input_tokens": 20,
        "output_tokens": 6,
        "errors": ["timed out"],
        "ttft": [0.1, 0.3],
        "inter_token": [0.01, 0.02, 0.03, 0.04],
        "end_to_end": [0.13, 0.37],
    }
    return {"tool": "vllm bench serve 0.32.0", "levels": [{"concurrency": 2, "runs": [run | changes]}]}


def test_percentiles_are_milliseconds_and_interpolate_linearly():
    run = latency.read(raw(), input_tokens=10, output_tokens=3).levels[0].runs[0]
    assert run.ttft_ms.mean == pytest.approx(200)
    assert run.ttft_ms.p50 == pytest.approx(200)
    assert run.ttft_ms.p95 == pytest.approx(290)
    assert run.ttft_ms.p99 == pytest.approx(298)
    assert run.inter_token_ms.p50 == pytest.approx(25)
    assert run.end_to_end_ms.p50 == pytest.approx(250)


def test_throughput_is_all_answered_tokens_over_the_wall_time_and_failures_are_counted():
    run = latency.read(raw(), input_tokens=10, output_tokens=3).levels[0].runs[0]
    assert run.output_tokens_per_second == pytest.approx(12)
    assert (run.completed, run.failed) == (2, 1)


def test_no_answered_request_is_an_error_with_the_requests_own_words():
    with pytest.raises(EvaluateError, match="at concurrency 2 no request was answered: timed out"):
        latency.read(raw(completed=0, failed=3, inter_token=[]), input_tokens=10, output_tokens=3)


def test_answers_of_another_length_are_an_error():
    with pytest.raises(EvaluateError, match="5 tokens in 2 answers of 3"):
        latency.read(raw(output_tokens=5), input_tokens=10, output_tokens=3)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1))
def test_percentiles_lie_in_order_and_within_the_times(seconds: list[float]):
    found = latency.percentiles(seconds)
    slack = 1e-6 * max(seconds) * 1000
    assert min(seconds) * 1000 - slack <= found.p50 <= found.p95 <= found.p99 <= max(seconds) * 1000 + slack
    assert min(seconds) * 1000 - slack <= found.mean <= max(seconds) * 1000 + slack
