"""Generated answers beside their scores: cut ones, endless loops, lengths; artifact against baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evals.stats import estimates, recovery
from qpack.core.records import Generated, GenerationDifference, TaskScore


def compare(
    baseline: Sequence[TaskScore], artifact: Sequence[TaskScore], *, seed: int = 0, confidence: float
) -> tuple[GenerationDifference, ...]:
    """One entry per task that both models answered over chat. Items are the clusters, repeats inside them."""
    return tuple(
        _task(b, a, seed, confidence)
        for b, a in zip(baseline, artifact, strict=True)
        if b.generated and a.generated and len(b.generated) == len(a.generated)
    )


def _task(baseline: TaskScore, artifact: TaskScore, seed: int, confidence: float) -> GenerationDifference:
    answers = _each(artifact, lambda item: len(item.tokens))
    cut_before, cut = (_each(side, lambda item: item.truncated) for side in (baseline, artifact))
    shares = [_each(side, lambda item: item.looped / max(1, len(item.tokens))) for side in (baseline, artifact)]
    lengths = [_each(side, lambda item: sum(item.tokens) / max(1, len(item.tokens))) for side in (baseline, artifact)]
    return GenerationDifference(
        task=artifact.task,
        answers=int(answers.sum()),
        truncated_baseline=float(cut_before.sum() / _each(baseline, lambda item: len(item.tokens)).sum()),
        truncated=estimates.rate_of_sums(cut, answers, seed=seed, confidence=confidence),
        loops_baseline=float(shares[0].mean()),
        # The drop of what was turned round: more loops than the baseline's is positive.
        loop_rate=estimates.paired_drop([(shares[1], shares[0])], seed=seed, confidence=confidence),
        tokens_baseline=float(lengths[0].mean()),
        length_ratio=recovery.recovery([(lengths[0], lengths[1])], confidence=confidence),
    )


def _each(task: TaskScore, figure: Callable[[Generated], float]) -> estimates.Floats:
    return np.array([figure(item) for item in task.generated], dtype=np.float64)
