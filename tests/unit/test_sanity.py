"""Claims about evidence without signal: no gate passes on it, and an honest small model isn't taken for broken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.comparison.verdicts import verdict
from evals.gates import sanity
from qpack.core.records import Comparison, Estimate, Evidence, Interval, Language, Release, Sample, TaskScore, Window
from tests.unit.evidence_samples import BOUNDS, estimate, make_release

VOCABULARY = 49_152


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


def text(perplexity: float, spread: float = 0.1, windows: int = 40) -> Language:
    """Windows of 255 tokens whose mean log-likelihoods differ by `spread` nats a token."""
    nll = np.random.default_rng(0).normal(math.log(perplexity), spread, windows)
    nll += math.log(perplexity) - nll.mean()
    scored = tuple(Window(nll=float(x) * 255, tokens=255) for x in nll)
    return Language(top_k=16, windows=scored, text_digest="ab" * 32, vocabulary=VOCABULARY)


def task(name: str, right: int, items: int, chance: float | None) -> TaskScore:
    samples = tuple(Sample(id=f"{name}-{i}", score=float(i < right)) for i in range(items))
    return TaskScore(
        task=name, version="1", metric="acc", few_shot=0, mean=right / items, samples=samples, chance=chance
    )


def model(of: Evidence, perplexity: float, *tasks: TaskScore) -> Evidence:
    accuracy = of.accuracy.model_copy(update={"tasks": tasks or of.accuracy.tasks})
    return of.model_copy(update={"language": text(perplexity), "accuracy": accuracy})


def flipped(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, samples=40, interval=Interval(low=low, high=high, confidence=0.9), method="made up")


def codes(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> dict[str, str]:
    return {result.gate: result.outcome for result in sanity.check(comparison, baseline, artifact)}


def compared(release: Release, flips: Estimate, chance: float | None = 0.97, drop: float = 0.0) -> Comparison:
    found = estimate(drop, drop - 0.03, drop + 0.03)
    update = {"flip_rate": flips, "chance_flips": chance, "accuracy_drop": found, "tasks": ()}
    return release.comparison.model_copy(update=update)


def test_every_token_flipped_and_a_perplexity_of_ten_to_the_eleven_is_a_fail_whatever_is_gated(release: Release):
    """A Gemma whose scales weren't undone: KL 0.0035 from lists that shared nothing, which passed a gate on it."""
    before = model(release.baseline, 17.5, task("piqa", 130, 200, 0.5))
    after = model(release.artifact, 1e11, task("piqa", 98, 200, 0.5))
    comparison = compared(release, flipped(1.0, 0.9997, 1.0), drop=0.16)
    assert codes(comparison, before, after) == {
        "sanity[artifact-perplexity]": "fail",
        "sanity[artifact-flips]": "fail",
        "sanity[artifact-tasks]": "fail",
    }
    tiny = comparison.model_copy(update={"kl_divergence": estimate(0.0035, 0.003, 0.004)})
    found = verdict(tiny, release.baseline, release.artifact.model_copy(update={"language": after.language}), {})
    assert found.outcome == "fail"


def test_all_tokens_flipped_fails_in_records_that_know_neither_vocabulary_nor_chance(release: Release):
    comparison = compared(release, flipped(1.0, 0.9997, 1.0), chance=None)
    assert codes(comparison, release.baseline, release.artifact) == {"sanity[artifact-flips]": "fail"}


def test_random_weights_leave_everything_undecided_and_are_named(release: Release):
    """Perplexity above the vocabulary's size, tasks at chance, 99.7 % flips, a KL divergence of 0.0000."""
    guesses = (task("piqa", 103, 200, 0.5), task("siqa", 47, 150, 1 / 3))
    before, after = model(release.baseline, 49_400, *guesses), model(release.artifact, 49_410, *guesses)
    comparison = compared(release, flipped(0.997, 0.996, 0.998))
    assert codes(comparison, before, after) == {"sanity[baseline-worthless]": "undecided"}
    (result,) = sanity.check(comparison, before, after)
    assert "49,152" in result.why
    assert "piqa 0.515, guessing 0.5" in result.why


def test_an_honest_artifact_meets_every_condition(release: Release):
    tasks = (task("piqa", 128, 200, 0.5), task("siqa", 62, 150, 1 / 3))
    before, after = model(release.baseline, 21.4, *tasks), model(release.artifact, 25.1, *tasks)
    assert codes(compared(release, flipped(0.218, 0.21, 0.227)), before, after) == {}


def test_three_bits_that_flip_most_tokens_are_not_broken_while_they_agree_beyond_chance(release: Release):
    comparison = compared(release, flipped(0.71, 0.69, 0.73))
    assert codes(comparison, model(release.baseline, 21.4), model(release.artifact, 180.0)) == {}


def test_text_of_one_word_where_chance_agrees_too_breaks_nothing(release: Release):
    comparison = compared(release, flipped(0.01, 0.0, 0.03), chance=0.02)
    assert codes(comparison, model(release.baseline, 2.0), model(release.artifact, 2.1)) == {}


def test_a_hard_task_beside_one_that_the_model_can_do_changes_nothing(release: Release):
    tasks = (task("piqa", 128, 200, 0.5), task("gsm8k", 0, 200, 0.0))
    before = model(release.baseline, 21.4, *tasks)
    assert codes(compared(release, flipped(0.2, 0.19, 0.21)), before, before) == {}
    assert sanity.accuracy_silent(before) == ""


def test_where_the_baseline_only_guesses_accuracy_can_not_pass_and_the_gates_on_text_stand(release: Release):
    accuracy = release.baseline.accuracy
    tasks = tuple(t.model_copy(update={"chance": t.mean}) for t in accuracy.tasks)
    before = release.baseline.model_copy(update={"accuracy": accuracy.model_copy(update={"tasks": tasks})})
    wide = {"accuracy_drop": 0.9, "task_accuracy_drop": 0.9, "flip_rate": 0.9}
    found = {g.gate: g.outcome for g in verdict(release.comparison, before, release.artifact, wide).gates}
    assert {outcome for gate, outcome in found.items() if "accuracy" in gate} == {"undecided"}
    assert found["flip_rate"] == "pass"
    assert not any(gate.startswith(sanity.SANITY) for gate in found)


def test_an_artifact_that_lost_all_that_the_baseline_could_do_fails_and_one_of_few_items_is_undecided(release: Release):
    before = model(release.baseline, 21.4, task("piqa", 140, 200, 0.5))
    after = model(release.artifact, 25.0, task("piqa", 104, 200, 0.5))
    flips = flipped(0.3, 0.29, 0.31)
    assert codes(compared(release, flips, drop=0.18), before, after) == {"sanity[artifact-tasks]": "fail"}
    assert codes(compared(release, flips, drop=0.02), before, after) == {"sanity[artifact-tasks]": "undecided"}


def test_one_right_answer_of_many_that_nobody_guesses_is_no_signal_and_many_are(release: Release):
    assert not sanity.any_above_chance([task("gsm8k", 1, 200, 0.0)])
    assert sanity.any_above_chance([task("gsm8k", 12, 200, 0.0)])


def test_a_perplexity_that_few_windows_leave_open_is_undecided(release: Release):
    wild = release.artifact.model_copy(update={"language": text(9_000, spread=5.0, windows=3)})
    found = codes(compared(release, flipped(0.3, 0.29, 0.31)), model(release.baseline, 21.4), wild)
    assert found == {"sanity[artifact-perplexity]": "undecided"}


def test_guessing_models_are_taken_for_able_ones_at_most_one_time_in_twenty():
    random = np.random.default_rng(3)
    able = 0
    for _ in range(2000):
        tasks = [
            task(name, int(random.binomial(150, chance)), 150, chance) for name, chance in (("a", 0.5), ("b", 0.25))
        ]
        able += sanity.any_above_chance(tasks)
    # A binomial of 2000 at 0.05 stays below 130 in 999 of 1000 runs.
    assert able < 130


def test_the_sample_release_has_signal_and_its_verdict_no_such_gate(release: Release):
    found = verdict(release.comparison, release.baseline, release.artifact, BOUNDS)
    assert not any(gate.gate.startswith(sanity.SANITY) for gate in found.gates)
