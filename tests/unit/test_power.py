"""Claims about how many items a gate takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evals.comparison import gained
from evals.comparison.compare import Published, of_evidence
from evals.comparison.verdicts import verdict
from evals.gates.gates import decide
from evals.stats import estimates
from evals.stats.power import POWER, Seen, drop_bound, items_needed, variance_of
from evals.stats.recovery import recovery
from qpack.core.records import Comparison, Release
from tests.unit import evidence_samples as samples


def answers(rng: np.random.Generator, items: int, changed: float) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers; a share of the items changes, as often for the better."""
    before = rng.random(items) < 0.6
    flips = rng.random(items) < np.where(before, changed / 2 / 0.6, changed / 2 / 0.4)
    return before.astype(float), (before ^ flips).astype(float)


def test_the_formula_is_what_a_hand_computes() -> None:
    """10 % of the items change, no true drop, a bound of two points: 0.1 x (1.645 + 0.842)^2 / 0.02^2."""
    assert items_needed([Seen(0.1, 0.6, 0.0)], 0.02) == pytest.approx(1546, abs=1)
    assert items_needed([Seen(0.1, 0.6, 0.0)] * 4, 0.02) == pytest.approx(1546 / 4, abs=1), "the mean of four tasks"
    assert items_needed([Seen(0.1, 0.6, 0.0)], 0.02, drop=0.03) is None


def test_with_as_many_items_a_gate_passes_as_often_as_planned() -> None:
    rng, bound = np.random.default_rng(0), 0.05
    seen = variance_of(estimates.paired_drop([answers(rng, 2000, 0.15)]))
    assert seen is not None
    needed = items_needed([Seen(seen, 0.6, 0.0)], bound)
    assert needed is not None
    passed = [
        decide(estimates.paired_drop([answers(rng, needed, 0.15)]), "max", bound)[0] == "pass" for _ in range(400)
    ]
    assert np.mean(passed) == pytest.approx(POWER, abs=0.1)


def test_a_bound_on_recovery_is_planned_as_a_drop() -> None:
    rng = np.random.default_rng(1)
    pair = answers(rng, 4000, 0.15)
    seen = variance_of(estimates.paired_drop([pair]))
    assert seen is not None
    score = float(pair[0].mean())
    needed = items_needed([Seen(seen, score, 0.0)], drop_bound("recovery", 0.92, score))
    assert needed is not None
    passed = [decide(recovery([answers(rng, needed, 0.15)]), "min", 0.92)[0] == "pass" for _ in range(400)]
    assert np.mean(passed) == pytest.approx(POWER, abs=0.1)


def compared(release: Release, published: Published | None) -> Comparison:
    c = release.comparison
    return of_evidence(
        release.baseline, release.artifact, (c.kl_divergence, c.flip_rate), interleaved=None, published=published
    )


def test_a_baseline_that_is_not_as_published_leaves_the_verdict_undecided(tmp_path: Path) -> None:
    release = samples.make_release(tmp_path)
    score = release.comparison.tasks[0].baseline
    for published, outcome in ((score + 0.02, "pass"), (score + 0.3, "undecided"), (score - 0.3, "undecided")):
        c = compared(release, Published({"piqa": published}, 0.03))
        found = verdict(c, release.baseline, release.artifact, {"accuracy_drop": 0.5})
        assert found.outcome == outcome
        assert [gate.gate for gate in found.gates if gate.outcome != "pass"] == (
            [] if outcome == "pass" else ["sanity[baseline-expected]"]
        )


def test_a_gain_beyond_noise_is_looked_into(tmp_path: Path) -> None:
    """The roles are exchanged, so that the losses are gains; answers of the last task are kept."""
    release = samples.make_release(tmp_path)
    better = samples.accuracy(quantized=True, harm=0.3)
    baseline = release.baseline.model_copy(update={"accuracy": better})
    artifact = release.artifact.model_copy(update={"accuracy": samples.accuracy()})
    c = compared(release.model_copy(update={"baseline": baseline, "artifact": artifact}), None)
    first = artifact.accuracy.tasks[0].samples
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"item": s.id, "prompt": "p", "text": f"t {s.id}"}) + "\n" for s in first))
    found = gained.find(c, baseline, artifact, (None, file), {})
    assert {each.task for each in found} == {task.task for task in c.tasks}
    for each in found:
        assert each.artifact > each.baseline
    assert [each.artifact_answer for each in found if each.task == "piqa"] == [
        f"t {each.item}" for each in found if each.task == "piqa"]  # fmt: skip
    assert gained.find(release.comparison, release.baseline, release.artifact, (None, file), {}) == ()
