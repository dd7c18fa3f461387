"""What every export takes of a release: both models, and each task's score with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qpack.core.records import Evidence, Release, TaskScore

HUB_PREFIX = "lm_eval:"


@dataclass(frozen=True)
class Side:
    """One of the two models: `role` is baseline or artifact, `name` what it is called elsewhere."""

    role: str
    name: str
    evidence: Evidence


def sides(release: Release) -> tuple[Side, Side]:
    """Baseline and artifact."""
    source = release.source.base_model or release.source.source.removeprefix("hf://").partition("@")[0]
    return Side("baseline", source, release.baseline), Side("artifact", release.name, release.artifact)


def plain_name(task: TaskScore) -> str:
    """The task's name as lm-eval has it."""
    return task.task.removeprefix(HUB_PREFIX)


def standard_error(task: TaskScore) -> float | None:
    """Of the mean score over items; None for fewer than two."""
    scores = np.array([sample.score for sample in task.samples], dtype=np.float64)
    if len(scores) < 2 or not np.isfinite(scores).all():
        return None
    return float(scores.std(ddof=1)) / math.sqrt(len(scores))


def figures(release: Release) -> dict[str, float]:
    """The comparison's figures by name, those that are numbers."""
    c = release.comparison
    named = {
        "recovery": c.recovery,
        "accuracy_drop": c.accuracy_drop,
        "perplexity_ratio": c.perplexity_ratio,
        "kl_divergence": c.kl_divergence,
        "flip_rate": c.flip_rate,
        "size_ratio": c.size_ratio,
        # Of an emulated artifact it is its twin's.
        "memory_ratio": c.memory_ratio if release.artifact.emulated is None else None,
    }
    found = {name: each.value for name, each in named.items() if each is not None}
    found |= {"perplexity_baseline": c.perplexity_baseline, "perplexity_artifact": c.perplexity_artifact}
    found |= {f"recovery.{task.task}": task.recovery.value for task in c.tasks if task.recovery}
    found |= {f"throughput_ratio.{speed.concurrency}": speed.throughput.value for speed in c.speed}
    return {name: value for name, value in found.items() if math.isfinite(value)}
