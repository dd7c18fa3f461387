from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from qpack.core.side_by_side import run_median
from qpack.core.speed import Latency, Run
from registry.release import card as release_card
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


def measured() -> Latency:
    """The latency of the demo's README: one run of three was disturbed (p99 between tokens 1.022 s, and 257 ms)."""
    level = examples.release().artifact.latency.levels[0]
    (run, *_) = level.runs

    def other(p99: float) -> Run:
        return run.model_copy(update={"inter_token_ms": run.inter_token_ms.model_copy(update={"p99": p99})})

    high = level.model_copy(update={"concurrency": 64, "runs": (other(257.0), other(1022.0), other(240.0))})
    return Latency(tool="vllm bench serve", levels=(high, level))


def test_one_disturbed_run_of_three_sets_no_objective() -> None:
    found = {goal.indicator: goal for goal in objectives.from_latency(measured(), server="vllm", hardware="a machine")}
    goal = found["inter_token_latency_seconds"]
    assert (goal.benchmark.p99_seconds, goal.benchmark.runs, goal.threshold_seconds) == (0.257, 3, 0.3)


def test_an_objective_rests_on_the_figure_that_card_and_report_show() -> None:
    latency = measured()
    made = examples.release()
    shown = made.model_copy(update={"artifact": made.artifact.model_copy(update={"latency": latency})})
    (level, *_) = latency.levels
    for goal in objectives.from_latency(latency, server="vllm", hardware="a machine"):
        metric = {"time": "ttft_ms", "inter": "inter_token_ms", "e2e": "end_to_end_ms"}[goal.indicator.split("_")[0]]
        assert goal.benchmark.p99_seconds * 1000 == pytest.approx(run_median(level, metric, "p99"))
    card = release_card.render(shown, examples.serving())
    assert " / 257.0 |" in card
    assert "1022" not in card


def test_objectives_come_from_the_highest_concurrency() -> None:
    for goal in objectives.from_latency(measured(), server="vllm 0.32.0", hardware="a machine"):
        assert goal.benchmark.concurrency == 64
        assert goal.threshold_seconds >= goal.benchmark.p99_seconds


def test_the_contract_names_speculative_decoding_only_where_it_is_on() -> None:
    plain = examples.serving()
    drafting = plain.model_copy(update={"arguments": {"speculative-config": {"method": "ngram"}}})
    assert metrics.ACCEPTED_TOKENS not in metrics.contract(plain)
    assert metrics.ACCEPTED_TOKENS in metrics.contract(drafting)


def test_what_is_missing_is_told_by_whole_names() -> None:
    text = '# TYPE vllm:a_total counter\nvllm:a_total{model="m"} 3.0\nvllm:b 1\n'
    assert metrics.missing(("vllm:a_total", "vllm:a", "vllm:b", "vllm:c"), text) == ("vllm:a", "vllm:c")
