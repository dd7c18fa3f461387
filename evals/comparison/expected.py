"""The baseline's scores beside published ones: a baseline that is broken isn't a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from evals.stats import distributions, estimates
from qpack.core.records import Accuracy, Estimate, ExpectedScore, Interval, TaskScore

HUB_PREFIX = "lm_eval:"


def compare(
    baseline: Accuracy, published: Mapping[str, float], tolerance: float, *, confidence: float = estimates.CONFIDENCE
) -> tuple[ExpectedScore, ...]:
    """One entry per published score of a task that was asked; `lm_eval:` in front of a name may be left out."""
    found = []
    for task in baseline.tasks:
        name = task.task if task.task in published else task.task.removeprefix(HUB_PREFIX)
        if name in published:
            found.append(
                ExpectedScore(
                    task=task.task, published=published[name], tolerance=tolerance, measured=_mean(task, confidence)
                )
            )
    return tuple(found)


def _mean(task: TaskScore, confidence: float) -> Estimate:
    """The mean score with Student's t interval over items."""
    scores = np.array([sample.score for sample in task.samples], dtype=np.float64)
    if not len(scores):
        return Estimate(value=math.nan, samples=0, interval=None, method="no items")
    mean, count = float(scores.mean()), len(scores)
    if count < 2 or not math.isfinite(mean):
        return Estimate(value=mean, samples=count, interval=None, method="mean score; one item has no interval")
    half = distributions.t_isf((1 - confidence) / 2, count - 1) * float(scores.std(ddof=1)) / math.sqrt(count)
    interval = Interval(low=mean - half, high=mean + half, confidence=confidence)
    return Estimate(value=mean, samples=count, interval=interval, method="mean score; t interval over items")
