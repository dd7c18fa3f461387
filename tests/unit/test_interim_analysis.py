"""Looks at accuracy while it comes in: parts that add up, a rule that keeps the error rate, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison.verdicts import verdict
from evals.gates import interim_analysis
from evals.gates.group_sequential import LOOKS, follow, levels
from evals.measure import accuracy
from evals.measure.eval_specs import TasksSpec
from evals.measure.suite import TaskRequest
from evals.parts import interim_tasks
from evals.report.markdown import render
from evals.workers.lm_eval_job import Answer, ScoredItem, ScoredTask
from qpack.core.findings import Look
from qpack.core.records import Accuracy, Sample, TaskScore
from tests.codes import coded
from tests.unit.evidence_samples import make_release

ITEMS = 400


def scored(scores: dict[str, np.ndarray], places: dict[str, np.ndarray]) -> Accuracy:
    """lm-eval's answers to some items of each task, in the order of the data set."""
    tasks = tuple(
        TaskScore(
            task=name,
            version="1",
            metric="acc",
            few_shot=0,
            mean=float(scores[name][places[name]].mean()),
            samples=tuple(Sample(id=f"{name}:{i}:x", score=float(scores[name][i])) for i in sorted(places[name])),
        )
        for name in scores
    )
    return Accuracy(lm_eval_version="0", tasks=tasks)


def parts_of(scores: dict[str, np.ndarray], order: dict[str, np.ndarray]) -> list[Accuracy]:
    """The answers look by look; the data set's order is `order`, which is random."""
    return [
        scored(scores, {name: order[name][round(begin * ITEMS) : round(end * ITEMS)] for name in scores})
        for begin, end in interim_analysis.SHARES
    ]


def models(seed: int, lost: float, gained: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Right and wrong of baseline and artifact on two tasks."""
    rng = np.random.default_rng(seed)
    baseline, artifact = {}, {}
    for name in ("one", "lm_eval:two"):
        draw = rng.random(ITEMS)
        right = rng.random(ITEMS) < 0.5
        baseline[name] = (right | (draw < lost)).astype(float)
        artifact[name] = np.where(draw < lost, 0.0, np.where(draw < lost + gained, 1.0, baseline[name]))
    return baseline, artifact


@given(st.integers(0, 2**32 - 1))
def test_the_looks_of_a_run_add_up_to_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, artifact = models(seed, 0.1, 0.05)
    order = {name: rng.permutation(ITEMS) for name in artifact}
    merged = interim_analysis.merge(parts_of(artifact, order))
    assert merged.model_copy(update={"look": None}) == scored(artifact, order)
    assert merged.look is not None
    assert (merged.look.number, merged.look.share) == (4, 1.0)


def test_the_baseline_is_paired_on_what_the_artifact_was_asked() -> None:
    baseline, artifact = models(0, 0.1, 0.05)
    order = {name: np.random.default_rng(1).permutation(ITEMS) for name in artifact}
    early = interim_analysis.merge(parts_of(artifact, order)[:2])
    cut = interim_analysis.seen(scored(baseline, order), early)
    for b, a in zip(cut.tasks, early.tasks, strict=True):
        assert [s.id for s in b.samples] == [s.id for s in a.samples]
        assert len(b.samples) == ITEMS // 2
        assert b.mean == pytest.approx(np.mean([s.score for s in b.samples]))


def test_an_item_that_the_baseline_lacks_stays_missing() -> None:
    baseline, artifact = models(0, 0.1, 0.05)
    order = {name: np.arange(ITEMS) for name in artifact}
    short = scored(baseline, {name: np.arange(1, ITEMS) for name in baseline})
    early = interim_analysis.merge(parts_of(artifact, order)[:1])
    assert len(interim_analysis.seen(short, early).tasks[0].samples) == len(early.tasks[0].samples) - 1


@pytest.mark.parametrize("lost", [0.02, 0.05, 0.08, 0.12, 0.25])
@pytest.mark.parametrize("seed", range(4))
def test_a_build_stops_where_the_simulated_rule_stops(lost: float, seed: int) -> None:
    """What the simulation of `follow` shows of the error rate therefore holds for a build."""
    baseline, artifact = models(seed, lost, 0.04)
    order = {name: np.random.default_rng(seed).permutation(ITEMS) for name in artifact}
    parts, whole = parts_of(artifact, order), scored(baseline, order)
    bounds = {"accuracy_drop": 0.03}
    so_far = [interim_analysis.merge(parts[:n]) for n in range(1, 5)]
    stops = [n for n, at in enumerate(so_far, 1) if interim_analysis.settled(whole, at, bounds, tests=1, seed=0)]
    pairs = [(baseline[name][order[name]], artifact[name][order[name]]) for name in artifact]
    assert stops[0] == follow(pairs, 0.03).look


def test_a_failure_among_many_gates_has_to_be_surer_before_it_stops() -> None:
    order = {name: np.arange(ITEMS) for name in ("one", "lm_eval:two")}
    found = []
    for seed in range(40):
        baseline, artifact = models(seed, 0.12, 0.02)
        first = interim_analysis.merge(parts_of(artifact, order)[:1])
        whole, bounds = scored(baseline, order), {"accuracy_drop": 0.0}
        found.append([interim_analysis.settled(whole, first, bounds, tests, seed=0) for tests in (1, 50)])
    alone, among_many = np.array(found).sum(axis=0)
    assert alone > among_many


def test_every_task_has_to_be_decided_where_every_task_is_gated() -> None:
    order = {name: np.arange(ITEMS) for name in ("one", "lm_eval:two")}
    baseline, artifact = models(0, 0.0, 0.0)
    hard = np.arange(ITEMS) % 20 == 0  # one task loses 5 %, which a hundred items can't tell from 6 %
    artifact = artifact | {"one": np.where(hard, 0.0, baseline["one"])}
    baseline = baseline | {"one": np.where(hard, 1.0, baseline["one"])}
    first = interim_analysis.merge(parts_of(artifact, order)[:1])
    whole = scored(baseline, order)
    assert interim_analysis.settled(whole, first, {"accuracy_drop": 0.2}, 1, 0)
    assert not interim_analysis.settled(whole, first, {"accuracy_drop": 0.2, "task_accuracy_drop": 0.06}, 1, 0)


@pytest.mark.parametrize(("bound", "asked"), [(0.5, 1), (0.0, 3)])
def test_no_part_is_asked_for_after_the_look_that_decides(bound: float, asked: int) -> None:
    baseline, artifact = models(0, 0.05, 0.05)
    order = {name: np.random.default_rng(1).permutation(ITEMS) for name in artifact}
    parts, whole = dict(zip(interim_analysis.SHARES, parts_of(artifact, order), strict=True)), scored(baseline, order)
    answered: list[Accuracy] = []
    told: list[str] = []

    def ask(part: tuple[float, float]) -> Accuracy:
        answered.append(parts[part])
        return parts[part]

    def stop(so_far: Accuracy) -> bool:
        return interim_analysis.settled(whole, so_far, {"accuracy_drop": bound}, tests=1, seed=0)

    found = interim_tasks.measure(ask, stop, told.append)
    assert len(answered) == asked
    assert found == interim_analysis.merge(answered)
    assert told[-1].startswith(f"look {asked} of 4, {asked * 200} items")


def test_a_part_has_the_items_between_its_shares() -> None:
    samples = tuple(ScoredItem(f"qpack_piqa:{i}:x", 1.0) for i in range(3))
    raw = Answer("0", False, 3, (ScoredTask("qpack_piqa", "1.0", "acc_norm", 0, 10, 0, 1.0, samples, None),))

    def spec(*share: float) -> TasksSpec:
        return TasksSpec((TaskRequest("qpack_piqa", limit=10),), 0, (share[0], share[1]))

    assert len(accuracy.read(raw, spec(0.25, 0.6)).tasks[0].samples) == 3
    with pytest.raises(accuracy.EvaluateError, check=coded("task-results"), match=r"\b3\b.*\b5\b"):
        accuracy.read(raw, spec(0.5, 1.0))


def test_verdict_and_markdown_say_at_which_look_it_stopped(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    whole = release.artifact.accuracy
    look = Look(number=2, looks=4, share=0.5, tail=levels(LOOKS)[1])
    at = whole.model_copy(update={"look": look})
    release = release.model_copy(update={"artifact": release.artifact.model_copy(update={"accuracy": at})})
    found = verdict(release.comparison, release.baseline, release.artifact, {"accuracy_drop": 0.5, "flip_rate": 0.9})
    said = {gate.gate: gate.why for gate in found.gates}
    assert "Stopped at look 2 of 4" in said["accuracy_drop"]
    assert "look" not in said["flip_rate"]
    assert "look 2 of 4" in render(release, found, "it")
    assert interim_analysis.confidence(at) == pytest.approx(1 - 2 * levels(LOOKS)[1])
