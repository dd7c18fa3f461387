"""Facts found in long context: artifact against baseline."""

from __future__ import annotations

import math

import numpy as np

from evals.stats import estimates
from qpack.core.figures import NeedleDifference
from qpack.core.findings import Needle

ABLE = 0.5
"""The share of facts that the baseline must find for the drop to be judged: a convention."""


def compare(
    baseline: Needle, artifact: Needle, *, seed: int = 0, confidence: float = estimates.CONFIDENCE
) -> NeedleDifference:
    """Artifact against baseline on the same prompts. No verdict where the baseline doesn't find enough facts."""
    scores = [np.array([float(x.found) for x in side.answers], dtype=np.float64) for side in (baseline, artifact)]
    drop = estimates.paired_drop([(scores[0], scores[1])], seed=seed, confidence=confidence)
    found, count = int(scores[0].sum()), len(scores[0])
    able = count > 0 and found >= math.ceil(ABLE * count)
    why = (
        f"The baseline finds only {found} of {count} facts in prompts of {baseline.prompt_tokens:,} tokens. Below "
        f"{100 * ABLE:.0f} % the drop isn't judged."
    )
    return NeedleDifference(
        baseline=float(scores[0].mean()) if count else math.nan,
        artifact=float(scores[1].mean()) if count else math.nan,
        drop=drop,
        no_verdict="" if able else why,
    )
