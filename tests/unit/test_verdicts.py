"""Claims about the verdict on a whole comparison: whole evidence, several gates, figures that are too good."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from evals.comparison import anomalies
from evals.comparison.verdicts import verdict
from evals.gates.gates import judge
from qpack.core.records import Accuracy, Comparison, Evidence, Interval, Judged, Release, Sample, Verdict
from qpack.pipeline.planned import Plan
from qpack.pipeline.stages import judge as judge_stage
from qpack.recipe.recipe_file import load
from tests.unit.evidence_samples import BOUNDS, estimate, make_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


def changed(of: Evidence, samples: tuple[Sample, ...]) -> Evidence:
    first, *others = of.accuracy.tasks
    tasks = (first.model_copy(update={"samples": samples}), *others)
    return of.model_copy(update={"accuracy": Accuracy(lm_eval_version=of.accuracy.lm_eval_version, tasks=tasks)})


def test_whole_evidence_is_judged_gate_by_gate(release: Release):
    found = verdict(release.comparison, release.baseline, release.artifact, BOUNDS)
    alone = judge(release.comparison, release.artifact, BOUNDS)
    assert [g.outcome for g in found.gates] == [g.outcome for g in alone.gates]
    assert found.outcome == alone.outcome
    assert found.anomalies == ()
    noisy = {g.gate for g in found.gates if g.estimate.interval}
    assert {g.gate for g in found.gates if g.holm_p is not None} == noisy


def test_a_missing_sample_fails_every_gate(release: Release):
    samples = release.artifact.accuracy.tasks[0].samples
    found = verdict(release.comparison, release.baseline, changed(release.artifact, samples[1:]), BOUNDS)
    assert {g.outcome for g in found.gates} == {"fail"}
    assert re.search(r"piqa: 1 .*: piqa-0\b", found.gates[0].why)


def test_a_sample_without_a_score_fails_every_gate(release: Release):
    samples = list(release.artifact.accuracy.tasks[0].samples)
    samples[7] = samples[7].model_copy(update={"score": math.nan})
    found = verdict(release.comparison, release.baseline, changed(release.artifact, tuple(samples)), BOUNDS)
    assert found.outcome == "fail"
    assert re.search(r"piqa: 1 .*\bpiqa-7\b", found.gates[0].why)


def test_samples_that_the_comparison_does_not_count_fail_every_gate(release: Release):
    both = [changed(e, e.accuracy.tasks[0].samples[:50]) for e in (release.baseline, release.artifact)]
    found = verdict(release.comparison, both[0], both[1], BOUNDS)
    assert re.search(r"piqa: 50 samples\D*200\b", found.gates[0].why)


def test_a_gate_that_fails_alone_and_not_among_several_is_undecided_and_says_what_it_takes(release: Release):
    barely = estimate(0.03, 0.0201, 0.0399, samples=500)
    comparison = release.comparison.model_copy(update={"accuracy_drop": barely})
    (alone,) = verdict(comparison, release.baseline, release.artifact, {"accuracy_drop": 0.02}).gates
    assert alone.outcome == "fail"
    among = verdict(comparison, release.baseline, release.artifact, BOUNDS | {"accuracy_drop": 0.02})
    first = among.gates[0]
    assert (first.gate, first.outcome, among.outcome) == ("accuracy_drop", "undecided", "undecided")
    assert first.holm_p is not None
    assert first.holm_p > 0.05
    assert f"{len([g for g in among.gates if g.holm_p is not None])} gates" in first.why
    assert re.search(r"about [\d,]+ items .*\(now 500\)", first.why)


def test_a_gate_that_fails_by_far_fails_among_any_number(release: Release):
    worse = release.comparison.model_copy(update={"accuracy_drop": estimate(0.2, 0.17, 0.23)})
    found = verdict(worse, release.baseline, release.artifact, BOUNDS)
    assert found.gates[0].outcome == "fail"
    assert found.gates[0].holm_p is not None
    assert found.gates[0].holm_p < 1e-6


def test_more_gates_never_turn_a_failure_or_a_doubt_into_a_pass(release: Release):
    rank = {"fail": 0, "undecided": 1, "pass": 2}
    some: dict[str, float] = {}
    before = "pass"
    for gate, bound in (BOUNDS | {"perplexity_ratio": 1.085}).items():
        some[gate] = bound
        after = verdict(release.comparison, release.baseline, release.artifact, some).outcome
        assert not (rank[before] < 2 <= rank[after])
        before = after


def gaining(release: Release, gained: int, lost: int) -> tuple[Comparison, Evidence]:
    """The first task with so many items gained and lost."""
    from evals.stats import estimates

    b = np.array([s.score for s in release.baseline.accuracy.tasks[0].samples])
    a = b.copy()
    a[np.flatnonzero(b == 0)[:gained]] = 1
    a[np.flatnonzero(b == 1)[:lost]] = 0
    samples = tuple(
        Sample(id=s.id, score=float(x)) for s, x in zip(release.artifact.accuracy.tasks[0].samples, a, strict=True)
    )
    first, *others = release.comparison.tasks
    tasks = (first.model_copy(update={"drop": estimates.paired_drop([(b, a)])}), *others)
    return release.comparison.model_copy(update={"tasks": tasks}), changed(release.artifact, samples)


def test_a_gain_that_rounding_can_not_explain_is_an_anomaly_and_does_not_change_the_answer(release: Release):
    comparison, artifact = gaining(release, gained=40, lost=3)
    found = verdict(comparison, release.baseline, artifact, BOUNDS)
    assert [a.split(":")[0] for a in found.anomalies] == ["piqa"]
    assert "40 items gained and 3 lost, 0.185 better than the baseline" in found.anomalies[0]
    assert found.outcome == "pass"


@pytest.mark.parametrize(("gained", "lost"), [(3, 40), (12, 10), (6, 0), (30, 22)])
def test_changes_both_ways_or_few_are_no_anomaly(release: Release, gained: int, lost: int):
    comparison, artifact = gaining(release, gained, lost)
    assert anomalies.find(comparison, release.baseline, artifact) == ()


def test_text_that_gets_likelier_and_a_server_that_gets_too_fast_are_anomalies(release: Release):
    c = release.comparison
    likelier = c.model_copy(update={"perplexity_ratio": estimate(0.9, 0.89, 0.91)})
    assert anomalies.find(likelier, release.baseline, release.artifact)[0].startswith("perplexity_ratio 0.9")
    fast = c.speed[0].throughput.model_copy(
        update={"value": 5.0, "interval": Interval(low=4.5, high=5.5, confidence=0.9)}
    )
    faster = c.model_copy(update={"speed": (c.speed[0].model_copy(update={"throughput": fast}), *c.speed[1:])})
    (found,) = anomalies.find(faster, release.baseline, release.artifact)
    assert found.startswith("throughput_ratio[1] 5: weights of 0.4319 times")


def test_smaller_weights_that_answer_just_like_the_baseline_are_an_anomaly(release: Release, tmp_path: Path):
    same = release.comparison.model_copy(
        update={
            "perplexity_ratio": estimate(1.0),
            "kl_divergence": estimate(0.0),
            "flip_rate": estimate(0.0, 0.0, 0.001),
        }
    )
    (found,) = anomalies.find(same, release.baseline, release.artifact)
    assert "which checkpoint was served" in found
    assert (
        anomalies.find(same.model_copy(update={"size_ratio": estimate(1.0)}), release.baseline, release.artifact) == ()
    )


def test_the_false_alarm_rate_of_gains_is_below_one_in_100_when_changes_go_both_ways(release: Release):
    rng = np.random.default_rng(0)
    alarms = sum(
        bool(anomalies.find(*_at_random(release, rng)))
        for _ in range(60)
    )  # fmt: skip
    assert alarms <= 1


def _at_random(release: Release, rng: np.random.Generator) -> tuple[Comparison, Evidence, Evidence]:
    changes = int(rng.integers(10, 60))
    gained = int(rng.binomial(changes, 0.5))
    comparison, artifact = gaining(release, gained, changes - gained)
    return comparison, release.baseline, artifact


def test_only_a_bound_inside_an_interval_is_worth_moving(release: Release) -> None:
    """A gate without signal is undecided wherever its bound is."""
    loaded = load(Path(__file__).parents[2] / "recipes" / "smollm2-135m-gram.yaml")
    first = next(gate for gate in release.verdict.gates if gate.estimate.interval is not None)
    assert first.estimate.interval is not None
    middle, beyond = first.estimate.value, first.estimate.interval.high + 1

    def hint(bound: float) -> str:
        gate = first.model_copy(update={"outcome": "undecided", "bound": bound})
        verdict = Verdict(outcome="undecided", gates=(gate,))
        judged = Judged(comparison=release.comparison, verdict=verdict)
        return judge_stage.refusal(cast("Plan", SimpleNamespace(loaded=loaded)), judged).hint or ""

    assert "bound" in hint(middle)
    assert hint(middle) != hint(beyond)
