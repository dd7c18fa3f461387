"""Percentiles of raw times, and answers that can't be compared."""

from __future__ import annotations

import ast
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from evals.measure import latency
from evals.measure.eval_specs import Load
from evals.workers.vllm_bench_job import Answer, PrefixRuns, RawRun
from qpack.core.errors import EvaluateError
from qpack.core.speed import Objective
from tests.codes import coded

LOAD = Load(concurrency=(2,), input_tokens=10, output_tokens=3, objective=Objective(ttft_ms=200))


def worker_function(name: str) -> Callable[..., Any]:
    """A pure function of the worker, which as a whole needs vLLM to be imported."""
    tree = ast.parse(latency.WORKER.read_text())
    wanted = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("median_interval", name)
    ]
    names: dict[str, Any] = {"math": math, "statistics": statistics}
    exec(compile(ast.Module(wanted, []), str(latency.WORKER), "exec"), names)
    found: Callable[..., Any] = names[name]
    return found


RUN = RawRun(
    seconds=0.5,
    completed=2,
    failed=1,
    input_tokens=20,
    output_tokens=6,
    errors=("timed out",),
    ttft=(0.1, 0.3),
    inter_token=(0.01, 0.02, 0.03, 0.04),
    end_to_end=(0.13, 0.37),
)
"""Two requests of three tokens each in half a second."""


def raw(**changes: Any) -> Answer:
    """One level with one run."""
    return Answer("vllm bench serve 0.32.0", ((replace(RUN, **changes),),), None)


def test_percentiles_are_milliseconds_and_interpolate_linearly():
    run = latency.read(raw(), LOAD).levels[0].runs[0]
    assert run.ttft_ms.mean == pytest.approx(200)
    assert run.ttft_ms.p50 == pytest.approx(200)
    assert run.ttft_ms.p95 == pytest.approx(290)
    assert run.ttft_ms.p99 == pytest.approx(298)
    assert run.inter_token_ms.p50 == pytest.approx(25)
    assert run.end_to_end_ms.p50 == pytest.approx(250)
    assert run.time_per_output_token_ms.p50 == pytest.approx((15 + 35) / 2)


def test_throughput_is_all_answered_tokens_over_the_wall_time_and_failures_are_counted():
    run = latency.read(raw(), LOAD).levels[0].runs[0]
    assert run.output_tokens_per_second == pytest.approx(12)
    assert run.total_tokens_per_second == pytest.approx(52)
    assert run.requests_per_second == pytest.approx(4)
    assert (run.completed, run.failed) == (2, 1)


def test_no_answered_request_is_an_error_with_the_requests_own_words():
    with pytest.raises(EvaluateError, check=coded("server-answer"), match=r"2.*timed out"):
        latency.read(raw(completed=0, failed=3, inter_token=()), LOAD)


def test_answers_of_another_length_are_an_error():
    with pytest.raises(EvaluateError, check=coded("server-answer"), match=r"5 .*2 .*3"):
        latency.read(raw(output_tokens=5), LOAD)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1))
def test_percentiles_lie_in_order_and_within_the_times(seconds: list[float]):
    found = latency.percentiles(seconds)
    slack = 1e-6 * max(seconds) * 1000
    assert min(seconds) * 1000 - slack <= found.p50 <= found.p95 <= found.p99 <= max(seconds) * 1000 + slack
    assert min(seconds) * 1000 - slack <= found.mean <= max(seconds) * 1000 + slack


def test_goodput_counts_the_requests_that_keep_every_limit():
    assert latency.read(raw(), LOAD).levels[0].runs[0].good == 1
    strict = replace(LOAD, objective=Objective(ttft_ms=200, time_per_output_token_ms=14))
    assert latency.read(raw(), strict).levels[0].runs[0].good == 0
    assert latency.read(raw(), replace(LOAD, objective=None)).levels[0].runs[0].good is None


def test_an_open_loop_sends_for_its_seconds_and_is_read_beside_the_closed_ones():
    load = replace(LOAD, rates=(4.0,), rate_seconds=10)
    assert [level.num_prompts for level in load.levels()] == [4, 40]
    both = raw()
    found = latency.read(replace(both, levels=both.levels * 2), load)
    assert [level.concurrency for level in found.levels] == [2]
    assert [level.rate for level in found.open_levels] == [4.0]


def test_another_number_of_levels_than_asked_for_is_an_error():
    with pytest.raises(EvaluateError, check=coded("worker-answer"), match=r"1 .*2"):
        latency.read(replace(raw(), levels=raw().levels * 2), LOAD)


def test_the_first_request_of_a_shared_prefix_is_no_hit():
    hit = replace(RUN, completed=3, output_tokens=9, ttft=(0.9, 0.1, 0.1), end_to_end=(1.0, 0.2, 0.2))
    miss = replace(hit, ttft=(0.5, 0.5, 0.5), end_to_end=(0.6, 0.6, 0.6))
    found = latency.read(replace(raw(), prefix=PrefixRuns(hit, miss)), replace(LOAD, prefix_tokens=64)).prefix
    assert found is not None
    assert (found.hit_ttft_ms, found.miss_ttft_ms, found.requests) == (100, 500, 2)


@given(st.integers(1, 400))
def test_the_interval_of_a_median_reaches_its_confidence_and_would_not_with_one_value_less(n: int):
    interval = worker_function("median_interval")(list(range(n)))
    if interval is None:
        assert n < 5
        return
    low, high = interval
    assert low + high == n - 1, "the same number left out at both ends"
    assert binom.cdf(high, n, 0.5) - binom.cdf(low, n, 0.5) >= 0.9
    assert binom.cdf(high - 1, n, 0.5) - binom.cdf(low + 1, n, 0.5) < 0.9


def test_runs_that_agree_settle_and_runs_that_do_not_go_on():
    settled = worker_function("settled")
    run = replace(RUN, output_tokens=100, seconds=1.0, ttft=(0.1,))
    assert not settled([run] * 4, 0.05), "four runs have no interval"
    assert settled([run] * 5, 0.05)
    assert not settled([replace(run, seconds=1 + 0.1 * i) for i in range(5)], 0.05)
