"""Figures that are too good: a gain that rounding weights can't explain points at the measurement, not at the model.

Rounding disturbs a model without knowing the benchmark, so answers change in both directions, text doesn't get much
likelier, and a server can't get faster than the bytes it no longer reads allow. The limits below are conventions with
room to spare, not estimates. An anomaly is told beside the verdict and doesn't change it: a gate decides on what was
measured, a person on whether to believe it.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from evals.gates.gates import figure
from evals.gates.multiplicity import holm
from qpack.core.records import Comparison, Evidence, TaskScore

LEVEL = 0.01
GAIN = 0.02
PERPLEXITY = 0.95
SPEED = 1.5


def find(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> tuple[str, ...]:
    """One sentence for each figure that is better than quantization explains. Pure.

    - A task where more items were gained than lost (exact one-sided sign test, Holm over tasks, at `LEVEL`) and the
      whole interval shows a gain above `GAIN`.
    - A perplexity ratio whose whole interval is below `PERPLEXITY`.
    - A throughput ratio whose whole interval is above `SPEED` times what the smaller weights allow.
    - Smaller weights and yet the very same answers everywhere: then the baseline itself was served.
    """
    return (*_gains(comparison, baseline, artifact), *_text(comparison), *_speed(comparison), *_same(comparison))


def _gains(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> list[str]:
    changes = [_changes(b, a) for b, a in zip(baseline.accuracy.tasks, artifact.accuracy.tasks, strict=False)]
    raw = [float(stats.binom.sf(gained - 1, lost + gained, 0.5)) if gained else 1.0 for lost, gained in changes]
    found = []
    for task, (lost, gained), p in zip(comparison.tasks, changes, holm(raw), strict=False):
        interval = task.drop.interval
        if p <= LEVEL and interval is not None and interval.high < -GAIN:
            found.append(
                f"{task.task}: {gained:,} items gained and {lost:,} lost, {figure(-task.drop.value)} better than the "
                f"baseline (Holm-adjusted p = {figure(p)}). Rounding changes answers both ways; look at the prompts, "
                "at the chat template, and at what the baseline was served with."
            )
    return found


def _text(comparison: Comparison) -> list[str]:
    ratio = comparison.perplexity_ratio
    if ratio.interval is None or ratio.interval.high >= PERPLEXITY:
        return []
    return [
        f"perplexity_ratio {figure(ratio.value)}: held-out text is likelier under the artifact than under the model it "
        "was made from. Look at whether calibration saw that text, and at how the baseline was served."
    ]


def _speed(comparison: Comparison) -> list[str]:
    size = comparison.size_ratio.value
    found = []
    for speed in comparison.speed:
        interval = speed.throughput.interval
        if interval is not None and size > 0 and interval.low > SPEED / size:
            found.append(
                f"throughput_ratio[{speed.concurrency}] {figure(speed.throughput.value)}: weights of "
                f"{figure(size)} times the bytes explain a ratio of {figure(1 / size)} at most. Something else slowed "
                "the baseline down."
            )
    return found


def _same(comparison: Comparison) -> list[str]:
    flips, kl = comparison.flip_rate, comparison.kl_divergence
    if not (flips.samples and kl.samples and comparison.size_ratio.value < 1):
        return []
    if flips.value == 0 and abs(kl.value) < 1e-9 and comparison.perplexity_ratio.value == 1:
        return [
            "every position of the held-out text has the baseline's distribution, although the artifact's weights are "
            f"{figure(comparison.size_ratio.value)} times the size. Look at which checkpoint was served."
        ]
    return []


def _changes(baseline: TaskScore, artifact: TaskScore) -> tuple[int, int]:
    """(items lost, items gained)."""
    b, a = (np.array([s.score for s in task.samples], dtype=np.float64) for task in (baseline, artifact))
    if b.shape != a.shape:
        return 0, 0
    return int(np.count_nonzero(a < b)), int(np.count_nonzero(a > b))
