from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evals.comparison.compare import compare
from qpack.core.errors import EvaluateError
from qpack.core.records import Comparison, Evidence, Sample, TaskScore
from qpack.core.speed import OpenLevel
from tests.unit.evidence_samples import CONCURRENCIES, TASKS, evidence, sides, write_logprobs


@pytest.fixture(scope="module")
def logprobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("logprobs")
    return write_logprobs(folder / "b.npz"), write_logprobs(folder / "a.npz", quantized=True)


def with_samples(of: Evidence, samples: tuple[Sample, ...]) -> Evidence:
    """The evidence with other samples in its first task."""
    first, *others = of.accuracy.tasks
    return with_task(of, first.model_copy(update={"samples": samples}), *others)


def with_task(of: Evidence, *tasks: TaskScore) -> Evidence:
    return of.model_copy(update={"accuracy": of.accuracy.model_copy(update={"tasks": tasks})})


def refusal(baseline: Evidence, artifact: Evidence, logprobs: tuple[Path, Path]) -> str:
    with pytest.raises(EvaluateError) as caught:
        compare(*sides(baseline, artifact, logprobs))
    assert caught.value.hint
    return "\n".join(map(str, caught.value.problems))


def test_every_figure_is_artifact_against_baseline(logprobs: tuple[Path, Path]):
    baseline, artifact = evidence(), evidence(quantized=True, harm=0.1)
    result = compare(*sides(baseline, artifact, logprobs))
    assert [t.task for t in result.tasks] == [name for name, _ in TASKS]
    assert [t.drop.value for t in result.tasks] == pytest.approx([t.baseline - t.artifact for t in result.tasks])
    assert result.accuracy_drop.value == pytest.approx(np.mean([t.drop.value for t in result.tasks]))
    assert result.accuracy_drop.value > 0, "a worse artifact has a positive drop"
    assert result.perplexity_ratio.value == pytest.approx(result.perplexity_artifact / result.perplexity_baseline)
    assert result.perplexity_ratio.value > 1
    assert result.kl_divergence.value > 0
    assert 0 < result.flip_rate.value < 1
    assert result.size_ratio.value == pytest.approx(111 / 257)
    assert result.size_ratio.interval is None
    assert result.memory_ratio.value == pytest.approx((111 + 1655) / (257 + 1655))
    assert [s.concurrency for s in result.speed] == list(CONCURRENCIES)
    assert result.speed[0].throughput.value > 1 > result.speed[-1].throughput.value
    assert result.speed[0].ttft_p50 < 1 < result.speed[-1].ttft_p50
    assert result.speed[0].inter_token_p50 < 1 < result.speed[-1].inter_token_p50


def test_a_model_compared_with_itself_differs_in_nothing(logprobs: tuple[Path, Path]):
    result = compare(*sides(evidence(), evidence(), (logprobs[0], logprobs[0])))
    assert result.accuracy_drop.value == result.kl_divergence.value == result.flip_rate.value == 0
    assert result.perplexity_ratio.value == result.size_ratio.value == result.memory_ratio.value == 1
    assert result.accuracy_drop.interval is not None
    assert result.accuracy_drop.interval.high > 0, "500 items can't show that nothing at all changed"


def test_the_same_seed_gives_the_same_comparison_which_survives_json(logprobs: tuple[Path, Path]):
    one, two = (compare(*sides(evidence(), evidence(quantized=True), logprobs), seed=5) for _ in range(2))
    assert one == two
    assert Comparison.model_validate_json(one.model_dump_json()) == one


def test_confidence_reaches_every_interval(logprobs: tuple[Path, Path]):
    result = compare(*sides(evidence(), evidence(quantized=True), logprobs), confidence=0.8)
    every = [result.accuracy_drop, result.perplexity_ratio, result.kl_divergence, result.flip_rate]
    every += [t.drop for t in result.tasks] + [s.throughput for s in result.speed]
    assert {e.interval.confidence for e in every if e.interval} == {0.8}


def test_a_missing_sample_is_named_with_its_task(logprobs: tuple[Path, Path]):
    artifact = evidence(quantized=True)
    samples = artifact.accuracy.tasks[0].samples
    found = refusal(evidence(), with_samples(artifact, samples[:3] + samples[4:]), logprobs)
    assert "piqa: 1 samples only in the baseline: piqa-3" in found


def test_an_extra_sample_is_named_with_its_task(logprobs: tuple[Path, Path]):
    artifact = evidence(quantized=True)
    more = (*artifact.accuracy.tasks[0].samples, Sample(id="stranger", score=1))
    assert "piqa: 1 samples only in the artifact: stranger" in refusal(
        evidence(), with_samples(artifact, more), logprobs
    )


def test_samples_in_another_order_are_named_with_their_task(logprobs: tuple[Path, Path]):
    artifact = evidence(quantized=True)
    one, two, *others = artifact.accuracy.tasks[0].samples
    found = refusal(evidence(), with_samples(artifact, (two, one, *others)), logprobs)
    assert "piqa: 2 samples in another order: piqa-0, piqa-1" in found


def test_a_sample_that_occurs_twice_is_named_with_its_task(logprobs: tuple[Path, Path]):
    baseline, artifact = evidence(), evidence(quantized=True)
    twice = [
        with_samples(e, (*e.accuracy.tasks[0].samples, e.accuracy.tasks[0].samples[7])) for e in (baseline, artifact)
    ]
    assert "piqa: 1 duplicate samples: piqa-7" in refusal(twice[0], twice[1], logprobs)


def test_many_samples_are_counted_and_a_few_named(logprobs: tuple[Path, Path]):
    found = refusal(evidence(), with_samples(evidence(quantized=True), ()), logprobs)
    assert "piqa: 200 samples only in the baseline: piqa-0, piqa-1, piqa-2, piqa-3, piqa-4 and 195 more" in found


OPEN = OpenLevel(rate=2.5, input_tokens=128, output_tokens=64, runs=())


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("language", {"text_digest": "other"}, "digest of the held-out text"),
        ("language", {"windows": ()}, "held-out text: 1,536 tokens in 24 windows against 0 in 0"),
        ("language", {"top_k": 5}, "top-k"),
        ("accuracy", {"lm_eval_version": "0.4.5"}, "lm-eval version"),
        ("accuracy", {"tasks": ()}, "tasks: piqa, openbookqa, commonsenseqa for the baseline"),
        ("hardware", {"cores": 64}, "hardware: cpu, Example CPU @ 2.60 GHz, 2 cores"),
        ("memory", {"kv_cache_bytes": 1}, "KV cache budget"),
        ("latency", {"levels": ()}, "load: 1 clients"),
        ("latency", {"open_levels": (OPEN,)}, "2.5 requests/s with 128 tokens in and 64 out"),
        ("latency", {"tool": "another"}, "load tool"),
        ("canary", {"replies": ()}, "Only one of them has a chat template"),
    ],
)
def test_models_measured_in_another_way_are_refused(
    part: str, change: dict[str, object], said: str, logprobs: tuple[Path, Path]
):
    artifact = evidence(quantized=True)
    other = artifact.model_copy(update={part: getattr(artifact, part).model_copy(update=change)})
    assert said in refusal(evidence(), other, logprobs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "2"}, "piqa: version: 1"),
        ({"few_shot": 5}, "piqa: few-shot"),
        ({"metric": "acc"}, "piqa: metric"),
        ({"chat_template": "ab"}, "piqa: chat template: None"),
        ({"seed": 4}, "piqa: seed"),
    ],
)
def test_a_task_run_in_another_way_is_refused(change: dict[str, object], said: str, logprobs: tuple[Path, Path]):
    artifact = evidence(quantized=True)
    first, *others = artifact.accuracy.tasks
    assert said in refusal(evidence(), with_task(artifact, first.model_copy(update=change), *others), logprobs)


def test_every_reason_is_given_at_once(logprobs: tuple[Path, Path]):
    artifact = evidence(quantized=True)
    other = with_samples(artifact, ()).model_copy(
        update={"memory": artifact.memory.model_copy(update={"kv_cache_bytes": 1})}
    )
    found = refusal(evidence(), other, logprobs)
    assert "piqa" in found
    assert "KV cache" in found


def test_total_memory_of_the_machine_may_differ_between_boots(logprobs: tuple[Path, Path]):
    artifact = evidence(quantized=True)
    hardware = artifact.hardware.model_copy(update={"memory_bytes": artifact.hardware.memory_bytes - 4096})
    compare(*sides(evidence(), artifact.model_copy(update={"hardware": hardware}), logprobs))


def test_memory_on_an_accelerator_is_weights_and_cache_there(logprobs: tuple[Path, Path]):
    def on_gpu(of: Evidence, loaded: int) -> Evidence:
        memory = of.memory.model_copy(update={"weights_loaded_bytes": loaded, "kv_cache_bytes": 1000})
        return of.model_copy(update={"memory": memory})

    result = compare(*sides(on_gpu(evidence(), 3000), on_gpu(evidence(quantized=True), 1000), logprobs))
    assert result.memory_ratio.value == 0.5
    assert "accelerator" in result.memory_ratio.method


def test_a_level_whose_runs_gave_nothing_is_not_a_number(logprobs: tuple[Path, Path]):
    def silent(of: Evidence) -> Evidence:
        levels = tuple(level.model_copy(update={"runs": ()}) for level in of.latency.levels)
        return of.model_copy(update={"latency": of.latency.model_copy(update={"levels": levels})})

    result = compare(*sides(silent(evidence()), silent(evidence(quantized=True)), logprobs))
    assert all(math.isnan(s.throughput.value) and s.throughput.samples == 0 for s in result.speed)
    assert all(math.isnan(s.ttft_p50) for s in result.speed)
    again = Comparison.model_validate_json(result.model_dump_json())
    assert math.isnan(again.speed[0].ttft_p50), "a figure that isn't a number survives JSON"
