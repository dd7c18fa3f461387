"""Interim analysis of accuracy: the artifact answers growing parts of the items until its accuracy gates are decided.

The baseline answers all items once, for every recipe. Items are in one random order for all models, so each look has
seen a random sample. The error rate is controlled over the looks (`evals.gates.group_sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evals.gates.gates import GATES, TASK_GATES, decide
from evals.gates.group_sequential import LOOKS, levels
from evals.gates.multiplicity import p_beyond
from evals.stats import estimates, recovery
from qpack.core.findings import Look
from qpack.core.records import Accuracy, Generated, Sample, TaskScore

SHARES = tuple(zip((0.0, *LOOKS), LOOKS, strict=False))
"""The items that each look adds, as shares: (begin, end)."""


def merge(parts: Sequence[Accuracy]) -> Accuracy:
    """The parts of all looks so far as one, in the order of the data set, with the number of the look."""
    tasks = tuple(_joined(scores) for scores in zip(*(part.tasks for part in parts), strict=True))
    look = Look(number=len(parts), looks=len(LOOKS), share=LOOKS[len(parts) - 1], tail=levels(LOOKS)[len(parts) - 1])
    return Accuracy(lm_eval_version=parts[0].lm_eval_version, tasks=tasks, look=look)


def seen(baseline: Accuracy, artifact: Accuracy) -> Accuracy:
    """The baseline's answers to the items that the artifact answered; all of them where it didn't stop early.

    An item that the baseline lacks stays missing, and the comparison reports it.
    """
    if artifact.look is None:
        return baseline
    asked = {task.task: {sample.id for sample in task.samples} for task in artifact.tasks}
    tasks = tuple(
        _with(task, [pair for pair in _pairs(task) if pair[0].id in asked[task.task]]) if task.task in asked else task
        for task in baseline.tasks
    )
    return baseline.model_copy(update={"tasks": tasks, "look": artifact.look})


def confidence(accuracy: Accuracy, default: float = estimates.CONFIDENCE) -> float:
    """The two-sided confidence of an accuracy interval: that of its look, else `default`."""
    return default if accuracy.look is None else 1 - 2 * accuracy.look.tail


def sentence(accuracy: Accuracy) -> str:
    """The look at which it stopped, as text; empty for accuracy measured at once."""
    look = accuracy.look
    if look is None:
        return ""
    items = sum(len(task.samples) for task in accuracy.tasks)
    return f"look {look.number} of {look.looks}, {items:,} items ({100 * look.share:.0f} % of those planned)"


def settled(baseline: Accuracy, artifact: Accuracy, bounds: Mapping[str, float], tests: int, seed: int) -> bool:
    """Whether every accuracy gate (`bounds`) is decided at this look. A failure counts if it is significant among
    `tests` gates, as in the verdict (Bonferroni, which is never laxer than Holm's procedure there).
    """
    if artifact.look is None or artifact.look.number == artifact.look.looks:
        return True
    pairs = [
        (np.array([s.score for s in b.samples]), np.array([s.score for s in a.samples]))
        for b, a in zip(seen(baseline, artifact).tasks, artifact.tasks, strict=True)
    ]
    for gate, bound in bounds.items():
        for group in [[pair] for pair in pairs] if gate in TASK_GATES else [pairs]:
            if gate.endswith("recovery"):
                estimate = recovery.recovery(group, confidence=confidence(artifact))
            else:
                estimate = estimates.paired_drop(group, seed=seed, confidence=confidence(artifact))
            kind = GATES[gate].kind
            outcome = decide(estimate, kind, bound)[0]
            p = p_beyond(estimate, kind, bound)
            if outcome == "undecided" or (outcome == "fail" and p is not None and p * tests > artifact.look.tail):
                return False
    return True


def _joined(scores: Sequence[TaskScore]) -> TaskScore:
    every = [pair for score in scores for pair in _pairs(score)]
    return _with(scores[0], sorted(every, key=lambda pair: _place(pair[0])))


def _pairs(task: TaskScore) -> list[tuple[Sample, Generated | None]]:
    """Each sample with the rest of its answers."""
    return list(zip(task.samples, task.generated or [None] * len(task.samples), strict=True))


def _with(task: TaskScore, pairs: Sequence[tuple[Sample, Generated | None]]) -> TaskScore:
    samples = tuple(sample for sample, _ in pairs)
    generated = tuple(answers for _, answers in pairs if answers is not None)
    mean = math.fsum(s.score for s in samples) / len(samples) if samples else math.nan
    return task.model_copy(update={"samples": samples, "generated": generated, "mean": mean})


def _place(sample: Sample) -> tuple[str, int]:
    """The task (of a group) and the item's index in its data set: ids are task:index:digest, and a task's name may hold
    colons. The worker gives the tasks of a group in the order of their names.
    """
    task, index, _ = sample.id.rsplit(":", 2)
    return task, int(index)
