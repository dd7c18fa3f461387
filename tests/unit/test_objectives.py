from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from registry.serving import metrics, objectives


@given(st.sampled_from(sorted(objectives.BUCKETS)), st.floats(min_value=1e-6, max_value=70))
def test_a_threshold_is_the_next_bucket_bound_above_what_was_measured(indicator: str, seconds: float) -> None:
    bounds = objectives.BUCKETS[indicator]
    found = objectives.bucket(indicator, seconds)
    assert found in bounds
    assert found >= seconds
    assert [bound for bound in bounds if seconds <= bound < found] == []


def test_a_figure_beyond_the_last_bucket_has_no_objective() -> None:
    assert objectives.bucket("inter_token_latency_seconds", 81) is None


def test_objectives_come_from_the_worst_run_at_the_highest_concurrency() -> None:
    latency = examples.release().artifact.latency
    level = max(latency.levels, key=lambda level: level.concurrency)
    found = objectives.from_latency(latency, server="vllm 0.32.0", hardware="a machine")
    assert [objective.indicator for objective in found] == list(objectives.BUCKETS)
    for objective in found:
        assert objective.benchmark.concurrency == level.concurrency
        assert objective.threshold_seconds >= objective.benchmark.p99_seconds
    assert found[0].benchmark.p99_seconds == pytest.approx(max(run.ttft_ms.p99 for run in level.runs) / 1000)


def test_the_contract_names_speculative_decoding_only_where_it_is_on() -> None:
    plain = examples.serving()
    drafting = plain.model_copy(update={"arguments": {"speculative-config": {"method": "ngram"}}})
    assert metrics.ACCEPTED_TOKENS not in metrics.contract(plain)
    assert metrics.ACCEPTED_TOKENS in metrics.contract(drafting)


def test_what_is_missing_is_told_by_whole_names() -> None:
    text = '# TYPE vllm:a_total counter\nvllm:a_total{model="m"} 3.0\nvllm:b 1\n'
    assert metrics.missing(("vllm:a_total", "vllm:a", "vllm:b", "vllm:c"), text) == ("vllm:a", "vllm:c")
