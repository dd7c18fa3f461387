"""Claims about recovery: the ratio, its interval, and what gates make of both."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.comparison import recheck
from evals.comparison.verdicts import verdict
from evals.gates.interim_analysis import settled
from evals.stats.recovery import recovery
from qpack.core.records import Accuracy, Release, Sample, TaskScore
from tests.unit import evidence_samples as samples


def answers(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """(baseline, artifact) from the four counts of right and wrong answers."""
    b = [1] * (both + lost) + [0] * (gained + neither)
    a = [1] * both + [0] * lost + [1] * gained + [0] * neither
    return np.array(b, dtype=np.float64), np.array(a, dtype=np.float64)


def test_recovery_and_its_interval_are_what_a_hand_computes() -> None:
    """100 items, 50 right for both, 12 lost, 8 gained: means 0.62 and 0.58."""
    found = recovery([answers(50, 12, 8, 30)])
    assert found.interval is not None
    assert found.value == pytest.approx(0.58 / 0.62)
    # Variances of the means, and their covariance: p q / 99 and (P(both) - p p') / 99.
    va, vb, cov = 0.58 * 0.42 / 99, 0.62 * 0.38 / 99, (0.50 - 0.58 * 0.62) / 99
    t = 1.6603912  # Student's t of 99 degrees of freedom, one-sided 5 %, from a table
    # (0.58 - 0.62 r)^2 = t^2 (va - 2 r cov + r^2 vb)
    a, b, c = 0.62**2 - t**2 * vb, -2 * (0.58 * 0.62 - t**2 * cov), 0.58**2 - t**2 * va
    roots = [(-b - math.sqrt(b * b - 4 * a * c)) / (2 * a), (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)]
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(roots), rel=1e-6)
    # The delta method, which takes the baseline's mean as known: r +- t sqrt(va - 2 r cov + r^2 vb) / 0.62.
    r = 0.58 / 0.62
    reach = t * math.sqrt(va - 2 * r * cov + r * r * vb) / 0.62
    assert (found.interval.low, found.interval.high) == pytest.approx((r - reach, r + reach), abs=0.01)


def test_over_tasks_it_is_the_ratio_of_mean_scores_and_no_mean_of_ratios() -> None:
    easy, hard = answers(80, 10, 0, 10), answers(10, 0, 10, 80)
    found = recovery([easy, hard])
    assert found.value == pytest.approx((0.8 + 0.2) / (0.9 + 0.1))
    assert found.samples == 200


def test_an_interval_leaves_the_truth_out_no_more_often_than_stated() -> None:
    """At each end 5 % are stated; 3 standard errors of 600 simulations are allowed."""
    rng = np.random.default_rng(0)
    below = above = 0
    chances = (0.8, 0.4)
    truth = sum(p * 0.95 + (1 - p) * 0.05 for p in chances) / sum(chances)
    for _ in range(600):
        pairs = []
        for p in chances:
            b, u = rng.random(250) < p, rng.random(250)
            pairs.append((b.astype(float), np.where(b, u < 0.95, u < 0.05).astype(float)))
        held = recovery(pairs).interval
        assert held is not None
        below, above = below + (held.high < truth), above + (held.low > truth)
    assert max(below, above) / 600 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda counts: sum(counts) > 1 and counts[0] + counts[1] > 0))
def test_the_interval_holds_the_value(counts: tuple[int, int, int, int]) -> None:
    found = recovery([answers(*counts)])
    assert found.interval is not None
    assert 0 <= found.interval.low <= found.value <= found.interval.high


def test_few_changed_items_give_an_interval_that_is_not_too_narrow() -> None:
    same = recovery([answers(60, 0, 0, 40)]).interval
    assert same is not None
    # 3 of 100 may have changed unseen (the rule of three), of the 60 right ones.
    assert same.low < 1 - 0.03 / 0.6 < 1
    assert same.high > 1


def test_repeated_answers_to_an_item_count_as_one_item() -> None:
    """The mean of 8 answers per item has the interval of 50 items, not of 400."""
    rng = np.random.default_rng(1)
    skill = rng.random(50)
    b, a = (rng.binomial(8, skill) / 8 for _ in range(2))
    apart = recovery([(np.repeat(b, 8), np.repeat(a, 8))]).interval
    once = recovery([(b, a)])
    assert once.samples == 50
    assert apart is not None
    assert once.interval is not None
    assert once.interval.high - once.interval.low > 2 * (apart.high - apart.low)


def test_a_baseline_without_a_score_leaves_the_gates_undecided(tmp_path: Path) -> None:
    release = samples.make_release(tmp_path)
    nothing = tuple(
        t.model_copy(update={"samples": tuple(s.model_copy(update={"score": 0.0}) for s in t.samples), "mean": 0.0})
        for t in release.baseline.accuracy.tasks
    )
    baseline, artifact = (
        side.model_copy(update={"accuracy": side.accuracy.model_copy(update={"tasks": nothing})})
        for side in (release.baseline, release.artifact)
    )
    compared = recovered(release.model_copy(update={"baseline": baseline, "artifact": artifact}))
    found = verdict(compared.comparison, baseline, artifact, {"recovery": 0.9, "task_recovery": 0.9})
    assert {gate.outcome for gate in found.gates if "recovery" in gate.gate} == {"undecided"}


def recovered(release: Release) -> Release:
    """The release with the figures of its scores computed again."""
    from evals.comparison import compare

    c = compare.of_evidence(
        release.baseline,
        release.artifact,
        (release.comparison.kl_divergence, release.comparison.flip_rate),
        interleaved=None,
    )
    return release.model_copy(update={"comparison": c})


def test_a_release_from_before_it_was_kept_is_judged_by_it_all_the_same(tmp_path: Path) -> None:
    release = samples.make_release(tmp_path)
    c = release.comparison
    old = c.model_copy(
        update={"recovery": None, "tasks": tuple(t.model_copy(update={"recovery": None}) for t in c.tasks)}
    )
    bounds = {"recovery": 0.5, "task_recovery": 0.5}
    of_old, of_new = (verdict(each, release.baseline, release.artifact, bounds) for each in (old, c))
    assert c.recovery is not None
    assert of_old == of_new
    assert [gate.gate for gate in of_old.gates[:2]] == ["recovery", f"task_recovery[{c.tasks[0].task}]"]


@pytest.mark.parametrize("place", ["recovery", "tasks"])
def test_verify_computes_recovery_again(tmp_path: Path, place: str) -> None:
    release = samples.make_release(tmp_path)
    assert not [each for each in recheck.figures(release, 0) if "recovery" in each]
    c = release.comparison
    assert c.recovery is not None
    better = c.recovery.model_copy(update={"value": 1.01})
    changed = c.model_copy(
        update={"recovery": better}
        if place == "recovery"
        else {"tasks": (c.tasks[0].model_copy(update={"recovery": better}), *c.tasks[1:])}
    )
    assert [
        each for each in recheck.figures(release.model_copy(update={"comparison": changed}), 0) if "recovery" in each
    ]


def test_interim_looks_stop_when_recovery_is_decided() -> None:
    from evals.gates.interim_analysis import merge

    def accuracy(scores: np.ndarray) -> Accuracy:
        asked = tuple(Sample(id=f"t:{i}:x", score=float(s)) for i, s in enumerate(scores))
        task = TaskScore(task="t", version="1", metric="acc", few_shot=0, mean=float(scores.mean()), samples=asked)
        return Accuracy(lm_eval_version="1", tasks=(task,))

    b, a = answers(200, 100, 0, 100)
    first = merge([accuracy(a)])
    assert settled(accuracy(b), first, {"recovery": 0.9}, 1, 0), "a third is lost"
    assert not settled(accuracy(b), first, {"recovery": 0.66}, 1, 0), "just about two thirds are kept"
