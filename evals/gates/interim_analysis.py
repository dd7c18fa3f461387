"""A build's looks at accuracy: the artifact is asked growing parts of the items until its accuracy gates are decided.

The baseline is asked all of them once, and shared. Parts are in a random order that is the same for every model, so
what a look has seen is a random sample. Error spent over the looks keeps the rate (`evals.gates.group_sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evals.gates.gates import GATES, decide
from evals.gates.group_sequential import LOOKS, levels
from evals.gates.multiplicity import p_beyond
from evals.stats import estimates
from qpack.core.findings import Look
from qpack.core.records import Accuracy, Sample, TaskScore

ACCURACY_GATES = ("accuracy_drop", "task_accuracy_drop")
SHARES = tuple(zip((0.0, *LOOKS), LOOKS, strict=False))
"""The share of the items at which each look's new part begins and ends."""


def merge(parts: Sequence[Accuracy]) -> Accuracy:
    """The parts of all looks so far as one, in the order of the data set, saying which look it is."""
    tasks = tuple(_joined(scores) for scores in zip(*(part.tasks for part in parts), strict=True))
    look = Look(number=len(parts), looks=len(LOOKS), share=LOOKS[len(parts) - 1], tail=levels(LOOKS)[len(parts) - 1])
    return Accuracy(lm_eval_version=parts[0].lm_eval_version, tasks=tasks, look=look)


def seen(baseline: Accuracy, artifact: Accuracy) -> Accuracy:
    """The baseline's answers to the items that the artifact was asked; all of them where it didn't stop early.

    An item that the baseline lacks stays missing, for the comparison to tell.
    """
    if artifact.look is None:
        return baseline
    asked = {task.task: {sample.id for sample in task.samples} for task in artifact.tasks}
    tasks = tuple(
        _with(task, [s for s in task.samples if s.id in asked[task.task]]) if task.task in asked else task
        for task in baseline.tasks
    )
    return baseline.model_copy(update={"tasks": tasks, "look": artifact.look})


def confidence(accuracy: Accuracy, plain: float = estimates.CONFIDENCE) -> float:
    """The two-sided confidence of an accuracy interval: the repeated one of its look, or `plain`."""
    return plain if accuracy.look is None else 1 - 2 * accuracy.look.tail


def sentence(accuracy: Accuracy) -> str:
    """Where it stopped, in words; empty for accuracy that was measured in one go."""
    look = accuracy.look
    if look is None:
        return ""
    items = sum(len(task.samples) for task in accuracy.tasks)
    return f"look {look.number} of {look.looks}, {items:,} items ({100 * look.share:.0f} % of those planned)"


def settled(baseline: Accuracy, artifact: Accuracy, bounds: Mapping[str, float], tests: int, seed: int) -> bool:
    """Whether every accuracy gate is decided at this look. `bounds` are theirs; a failure has to hold among `tests`
    gates, as it will have to in the verdict (Bonferroni, which is never laxer than Holm's procedure there).
    """
    if artifact.look is None or artifact.look.number == artifact.look.looks:
        return True
    pairs = [
        (np.array([s.score for s in b.samples]), np.array([s.score for s in a.samples]))
        for b, a in zip(seen(baseline, artifact).tasks, artifact.tasks, strict=True)
    ]
    for gate, bound in bounds.items():
        for group in [[pair] for pair in pairs] if gate == "task_accuracy_drop" else [pairs]:
            estimate = estimates.paired_drop(group, seed=seed, confidence=confidence(artifact))
            kind = GATES[gate].kind
            outcome = decide(estimate, kind, bound)[0]
            p = p_beyond(estimate, kind, bound)
            if outcome == "undecided" or (outcome == "fail" and p is not None and p * tests > artifact.look.tail):
                return False
    return True


def _joined(scores: Sequence[TaskScore]) -> TaskScore:
    return _with(scores[0], sorted((s for score in scores for s in score.samples), key=_place))


def _with(task: TaskScore, samples: Sequence[Sample]) -> TaskScore:
    mean = math.fsum(s.score for s in samples) / len(samples) if samples else math.nan
    return task.model_copy(update={"samples": tuple(samples), "mean": mean})


def _place(sample: Sample) -> int:
    """Where the item stands in its data set: ids are task:index:digest, and a task's name may hold colons."""
    return int(sample.id.rsplit(":", 2)[1])
