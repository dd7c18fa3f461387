"""Anomalies: figures better than quantization can explain, which suggest an error in the measurement.

Rounding weights changes answers in both directions, doesn't make text much likelier, and speeds a server up at most by
the bytes that it no longer reads. The limits below are conservative conventions, not estimates. An anomaly is reported
with the verdict and doesn't change it.
"""

from __future__ import annotations

import numpy as np

from evals.gates.gates import figure
from evals.gates.multiplicity import holm
from evals.stats import distributions
from qpack.core.records import Comparison, Evidence, TaskDifference, TaskScore

LEVEL = 0.01
GAIN = 0.02
OUTDONE = 1.1
PERPLEXITY = 0.95
SPEED = 1.5


def find(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> tuple[str, ...]:
    """One sentence per figure that is better than quantization can explain. Pure.

    - A task with more items gained than lost (exact one-sided sign test, Holm over tasks, at `LEVEL`) whose whole
      interval is a gain above `GAIN`.
    - A perplexity ratio whose whole interval is below `PERPLEXITY`.
    - A throughput ratio whose whole interval is above `SPEED` times what the smaller weights allow.
    - Smaller weights but identical distributions everywhere: the baseline itself may have been served.
    """
    return (*_gains(comparison, baseline, artifact), *_text(comparison), *_speed(comparison), *_same(comparison))


def outdone(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> tuple[TaskDifference, ...]:
    """Tasks with a gain that is an anomaly, and a recovery whose whole interval is above `OUTDONE`: the baseline is
    broken, or was asked otherwise.
    """
    return tuple(
        task
        for task, *_ in _gained(comparison, baseline, artifact)
        if task.recovery is not None and task.recovery.interval is not None and task.recovery.interval.low > OUTDONE
    )


def _gained(
    comparison: Comparison, baseline: Evidence, artifact: Evidence
) -> list[tuple[TaskDifference, int, int, float]]:
    """(task, items gained, items lost, adjusted p) of each gain that is an anomaly."""
    changes = [_changes(b, a) for b, a in zip(baseline.accuracy.tasks, artifact.accuracy.tasks, strict=False)]
    raw = [distributions.binomial_sf(gained - 1, lost + gained, 0.5) if gained else 1.0 for lost, gained in changes]
    found = []
    for task, (lost, gained), p in zip(comparison.tasks, changes, holm(raw), strict=False):
        interval = task.drop.interval
        if p <= LEVEL and interval is not None and interval.high < -GAIN:
            found.append((task, gained, lost, p))
    return found


def _gains(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> list[str]:
    return [
        f"{task.task}: {gained:,} items gained and {lost:,} lost, {figure(-task.drop.value)} better than the "
        f"baseline (Holm-adjusted p = {figure(p)}). Rounding weights changes answers in both directions. Check "
        "the prompts, the chat template, and how the baseline was served."
        for task, gained, lost, p in _gained(comparison, baseline, artifact)
    ]


def _text(comparison: Comparison) -> list[str]:
    ratio = comparison.perplexity_ratio
    if ratio.interval is None or ratio.interval.high >= PERPLEXITY:
        return []
    return [
        f"perplexity_ratio {figure(ratio.value)}: held-out text is likelier under the artifact than under the "
        "baseline. Check whether the calibration data contains this text, and how the baseline was served."
    ]


def _speed(comparison: Comparison) -> list[str]:
    size = comparison.size_ratio.value
    found = []
    for speed in comparison.speed:
        interval = speed.throughput.interval
        if interval is not None and size > 0 and interval.low > SPEED / size:
            found.append(
                f"throughput_ratio[{speed.concurrency}] {figure(speed.throughput.value)}: weights of {figure(size)} "
                f"times the size explain at most {figure(1 / size)}. Check what slowed the baseline down."
            )
    return found


def _same(comparison: Comparison) -> list[str]:
    flips, kl = comparison.flip_rate, comparison.kl_divergence
    if not (flips.samples and kl.samples and comparison.size_ratio.value < 1):
        return []
    if flips.value == 0 and abs(kl.value) < 1e-9 and comparison.perplexity_ratio.value == 1:
        return [
            "the artifact's next-token distributions are identical to the baseline's, although its weights are "
            f"{figure(comparison.size_ratio.value)} times the size. Check which checkpoint was served."
        ]
    return []


def _changes(baseline: TaskScore, artifact: TaskScore) -> tuple[int, int]:
    """(items lost, items gained)."""
    b, a = (np.array([s.score for s in task.samples], dtype=np.float64) for task in (baseline, artifact))
    if b.shape != a.shape:
        return 0, 0
    return int(np.count_nonzero(a < b)), int(np.count_nonzero(a > b))
