"""No verdict passes on evidence that shows a broken model, whatever single gate is set, and however loose."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from evals.comparison.compare import differences, of_evidence
from evals.comparison.verdicts import verdict
from evals.gates.gates import GATES
from qpack.core.records import Comparison, Estimate, Evidence, Generated, Release, Sample, TaskScore, Window
from tests.unit.evidence_samples import estimate, make_release

LOOSE = {
    **{gate: 0.0 if GATES[gate].kind == "min" else 1e9 for gate in GATES},
    "failed_requests": 1e9,
}
"""Bounds that nothing can miss."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


def text(of: Evidence, change: Callable[[Window], float]) -> Evidence:
    """With other log-likelihoods of the windows."""
    windows = tuple(w.model_copy(update={"nll": change(w)}) for w in of.language.windows)
    return of.model_copy(update={"language": of.language.model_copy(update={"windows": windows})})


def tasks(of: Evidence, change: Callable[[int, TaskScore], TaskScore | None]) -> Evidence:
    """With other tasks; None leaves one out."""
    found = tuple(new for i, task in enumerate(of.accuracy.tasks) if (new := change(i, task)) is not None)
    return of.model_copy(update={"accuracy": of.accuracy.model_copy(update={"tasks": found})})


def scored(task: TaskScore, scores: Callable[[int, float], float], chance: float | None) -> TaskScore:
    samples = tuple(Sample(id=s.id, score=scores(i, s.score)) for i, s in enumerate(task.samples))
    mean = sum(s.score for s in samples) / len(samples)
    return task.model_copy(update={"samples": samples, "mean": mean, "chance": chance})


def known(of: Evidence) -> Evidence:
    """With a chance that the scores are well above."""
    return tasks(of, lambda _, task: task.model_copy(update={"chance": 0.2}))


def answers(of: Evidence, tokens: int | None, cut: int, looped: int = 0) -> Evidence:
    """Each generated answer with so many tokens (None: as it is), so many of them cut."""

    def change(_: int, task: TaskScore) -> TaskScore:
        new = tuple(
            Generated(
                tokens=item.tokens if tokens is None else tuple(tokens for _ in item.tokens),
                truncated=cut,
                looped=looped,
            )
            for item in task.generated
        )
        return task.model_copy(update={"generated": new})

    return tasks(of, change)


Sides = tuple[Evidence, Evidence]


def every_other(i: int, _: float) -> float:
    return float(i % 5 == 0)


KINDS: dict[str, Callable[[Sides], Sides]] = {
    "the baseline is at chance": lambda s: (
        tasks(s[0], lambda _, t: scored(t, every_other, 0.2)),
        tasks(s[1], lambda _, t: scored(t, every_other, 0.2)),
    ),
    "the artifact is at chance": lambda s: (known(s[0]), tasks(s[1], lambda _, t: scored(t, every_other, 0.2))),
    "the artifact is at chance on one task of three": lambda s: (
        known(s[0]),
        tasks(known(s[1]), lambda i, t: scored(t, every_other, 0.2) if i == 2 else t),
    ),
    "the artifact answers nothing right over chat": lambda s: (
        tasks(s[0], lambda _, t: t.model_copy(update={"chance": 0.0})),
        tasks(s[1], lambda i, t: scored(t, lambda *_: 0.0, 0.0) if i == 2 else t.model_copy(update={"chance": 0.0})),
    ),
    "the artifact's perplexity is above uniform": lambda s: (s[0], text(s[1], lambda w: 6.0 * w.tokens)),
    "the baseline's perplexity is above uniform": lambda s: (text(s[0], lambda w: 6.0 * w.tokens), s[1]),
    "both perplexities are above uniform": lambda s: (
        text(s[0], lambda w: 6.0 * w.tokens),
        text(s[1], lambda w: 6.0 * w.tokens),
    ),
    "the artifact's log-likelihoods are NaN": lambda s: (s[0], text(s[1], lambda _: float("nan"))),
    "one log-likelihood of the artifact is NaN": lambda s: (
        s[0],
        text(s[1], lambda w: float("nan") if w == s[1].language.windows[3] else w.nll),
    ),
    "the artifact's log-likelihoods are infinite": lambda s: (s[0], text(s[1], lambda _: float("inf"))),
    "NaN of a model whose vocabulary isn't recorded": lambda s: tuple(  # type: ignore[return-value]
        e.model_copy(update={"language": e.language.model_copy(update={"vocabulary": None})})
        for e in (s[0], text(s[1], lambda _: float("nan")))
    ),
    "a score is NaN": lambda s: (
        s[0],
        tasks(s[1], lambda _, t: scored(t, lambda i, x: float("nan") if i == 0 else x, t.chance)),
    ),
    "a task of the artifact is missing": lambda s: (s[0], tasks(s[1], lambda i, t: t if i else None)),
    "items of the artifact are missing": lambda s: (
        s[0],
        tasks(s[1], lambda _, t: t.model_copy(update={"samples": t.samples[:-9]})),
    ),
    "the artifact never stops": lambda s: (answers(s[0], None, 0), answers(s[1], 512, 4)),
    "every answer of both is cut": lambda s: (answers(s[0], 512, 4), answers(s[1], 512, 4)),
    "the artifact's answers are empty": lambda s: (answers(s[0], None, 0), answers(s[1], 1, 0)),
    "every answer of the artifact is a loop": lambda s: (answers(s[0], None, 0), answers(s[1], 512, 4, 4)),
    "the artifact recovers 1.5": lambda s: (
        tasks(s[0], lambda _, t: scored(t, lambda i, _x: float(i % 10 < 5), 0.2)),
        tasks(s[1], lambda _, t: scored(t, lambda i, _x: float(i % 10 < 8), 0.2)),
    ),
}


FIGURES: dict[str, dict[str, Estimate]] = {
    "nearly all tokens flipped": {"flip_rate": estimate(0.955, 0.95, 0.96)},
    "all tokens flipped": {"flip_rate": estimate(1.0, 0.999, 1.0)},
    "the divergence isn't a number": {"kl_divergence": estimate(math.nan)},
    "the flips aren't a number": {"flip_rate": estimate(math.nan)},
    "kernels lose what the weights hold": {"cross_check": estimate(3.0, 2.5, 3.5)},
}
"""Figures of the comparison that show a broken artifact, beside evidence that doesn't."""


@pytest.mark.parametrize("kind", KINDS)
def test_broken_evidence_is_never_a_pass(kind: str, release: Release) -> None:
    baseline, artifact = KINDS[kind]((release.baseline, release.artifact))
    comparison = compared(release, baseline, artifact)
    assert passes(comparison, baseline, artifact) == set()


@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_of_a_broken_artifact_is_never_a_pass(kind: str, release: Release) -> None:
    update = {"chance_flips": 0.97, **FIGURES[kind]}
    comparison = release.comparison.model_copy(update=update)
    assert passes(comparison, known(release.baseline), known(release.artifact)) == set()


def test_bounds_so_loose_pass_the_evidence_before_it_was_broken(release: Release) -> None:
    baseline, artifact = known(release.baseline), known(release.artifact)
    assert passes(release.comparison, baseline, artifact) == {None, *LOOSE}


def passes(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> set[str | None]:
    """The gates that alone, with a bound that nothing misses, would let this pass; None: no gate."""
    return {
        gate
        for gate in (None, *LOOSE)
        if verdict(comparison, baseline, artifact, {gate: LOOSE[gate]} if gate else {}).outcome == "pass"
    }


def compared(release: Release, baseline: Evidence, artifact: Evidence) -> Comparison:
    """The comparison of what can be paired, as a build has it; else that of before."""
    kept = release.comparison
    if differences(baseline, artifact):
        return kept
    found = of_evidence(baseline, artifact, (kept.kl_divergence, kept.flip_rate), interleaved=None)
    update = {"chance_flips": kept.chance_flips, "divergences": kept.divergences, "domains": kept.domains}
    return found.model_copy(update=update)
