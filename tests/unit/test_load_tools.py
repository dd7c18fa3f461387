"""Claims about reading other load generators' reports: real ones, cut, with failed requests added."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from evals.measure import load_tools
from evals.measure.eval_specs import Load
from qpack.runtime import worker


def figures(mean: float, count: int, p50: float, p90: float, p95: float, p99: float) -> dict[str, Any]:
    found = {"mean": mean, "count": count, "total_sum": mean * count}
    return {"successful": {**found, "percentiles": {"p50": p50, "p90": p90, "p95": p95, "p99": p99}}}


GUIDELLM: dict[str, Any] = {
    "duration": 0.6329,
    "metrics": {
        "request_totals": {"successful": 4, "errored": 1, "incomplete": 2, "total": 7},
        "requests_per_second": figures(6.3202, 4, 6.293, 6.3477, 6.3477, 6.3477),
        "output_tokens_per_second": figures(101.1232, 64, 12.6393, 197.1841, 197.1934, 197.1934),
        "output_token_count": figures(16.0, 4, 16.0, 16.0, 16.0, 16.0),
        "time_to_first_token_ms": figures(154.5298, 4, 154.1548, 155.9267, 155.9267, 155.9267),
        "inter_token_latency_ms": figures(10.3912, 60, 10.4362, 10.5054, 10.5054, 10.5054),
        "request_latency": figures(0.3109, 4, 0.3113, 0.3123, 0.3123, 0.3123),
    },
}


def seconds(mean: float, median: float, p90: float, p95: float, p99: float) -> dict[str, float]:
    return {"mean": mean, "median": median, "p90": p90, "p95": p95, "p99": p99}


INFERENCE_PERF: dict[str, Any] = {
    "benchmark_time_seconds": 1.1842,
    "successes": {
        "count": 4,
        "latency": {
            "request_latency": seconds(0.3142, 0.314, 0.3177, 0.3183, 0.3188),
            "time_per_output_token": seconds(0.0176, 0.0176, 0.0179, 0.0179, 0.0179),
            "time_to_first_token": seconds(0.155, 0.1552, 0.1558, 0.1559, 0.1559),
        },
        "throughput": {"output_tokens_per_sec": 33.7785, "requests_per_sec": 3.3779},
    },
    "failures": {"count": 3},
}


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The worker as it is in a tool's environment: its folder and the worker library on the path, and no qpack."""
    monkeypatch.syspath_prepend(str(load_tools.WORKER.parent))
    monkeypatch.syspath_prepend(str(Path(worker.__file__).parent / "workerlib"))
    return importlib.import_module("load_tool_worker")


def test_both_reports_are_read_in_milliseconds_with_their_failures(reading: Any) -> None:
    one = reading.of_guidellm({"benchmarks": [GUIDELLM]})
    other = reading.of_inference_perf(INFERENCE_PERF)
    assert (one.completed, one.failed, other.completed, other.failed) == (4, 3, 4, 3)
    assert one.end_to_end_ms.mean == pytest.approx(310.9)
    assert one.per_token_ms.p95 == 10.5054
    assert other.ttft_ms.p50 == pytest.approx(155.2)
    assert other.per_token_ms.mean == pytest.approx(17.6)
    assert (one.output_tokens_per_second, other.output_tokens_per_second) == (101.1232, 33.7785)


def test_a_level_without_an_answer_has_no_times(reading: Any) -> None:
    metrics = {name: figures(0.0, 0, 0.0, 0.0, 0.0, 0.0) for name in GUIDELLM["metrics"]}
    metrics["request_totals"] = {"successful": 0, "errored": 4, "incomplete": 0, "total": 4}
    one = reading.of_guidellm({"benchmarks": [{**GUIDELLM, "metrics": metrics}]})
    other = reading.of_inference_perf({**INFERENCE_PERF, "successes": {"count": 0}})
    for run in (one, other):
        assert (run.completed, run.ttft_ms, run.per_token_ms, run.end_to_end_ms) == (0, None, None, None)


def test_every_level_of_a_load_is_asked_of_both_tools(reading: Any, tmp_path: Path) -> None:
    job_module = importlib.import_module("load_tool_job")
    load = Load(concurrency=(4,), rates=(2.5,), rate_seconds=6.0, input_tokens=64, output_tokens=16)
    levels = tuple(job_module.ToolLevel(one.num_prompts, one.concurrency, one.rate) for one in load.levels())
    server = job_module.ToolServer("http://127.0.0.1:1", "m", "tokenizer")
    for tool, (write, _) in reading.TOOLS.items():
        job = job_module.Job(tool, server, levels, 64, 16, 0, 6.0)
        texts = []
        for level in levels:
            command, report = write(job, level, tmp_path)
            texts.append((tmp_path / Path(command[-1] if tool != "guidellm" else command[3]).name).read_text())
            assert report.is_relative_to(tmp_path)
        assert '"concurrent"' in texts[0]
        assert '"poisson"' in texts[1]
        assert "2.5" in texts[1]
