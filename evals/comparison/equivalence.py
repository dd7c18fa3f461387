"""Are two measurements of what should be one model the same, within a margin? Pure: evidence in, an answer out.

Two one-sided tests (Schuirmann, J. Pharmacokin. Biopharm. 15 (1987); Lakens, Soc. Psychol. Personal. Sci. 8 (2017)):
a paired difference is within the margin when its whole two-sided 90 % interval is, so that each side is a test at 5 %.
That nothing was found to differ shows nothing: few samples never do, and then the answer stays open.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from evals.comparison import compare
from evals.stats import estimates
from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.records import Estimate, Evidence

Answer = Literal["same", "different", "undecided"]


class Margins(Frozen):
    """How far apart two rebuilds may be: accuracy in absolute terms (mean over tasks), perplexity as a share."""

    accuracy: float = 0.02
    perplexity: float = 0.02


class Equivalence(Frozen):
    """What was compared, in pairs: `accuracy` is then minus now, `perplexity` now over then."""

    accuracy: Estimate
    perplexity: Estimate
    margins: Margins
    answers: dict[str, Answer]

    @property
    def answer(self) -> Answer:
        """`different` when any figure is, else `undecided` when any is."""
        found = self.answers.values()
        return next((a for a in ("different", "undecided") if a in found), "same")


def equivalence(then: Evidence, now: Evidence, margins: Margins, *, seed: int = 0) -> Equivalence:
    """Hold the evidence of a rebuilt artifact against that of the release, sample by sample and window by window.

    Where they ran doesn't count: that is what is asked. Raises EvaluateError when other questions were asked.
    """
    problems = compare.asked_differently(then, now)
    if problems:
        raise EvaluateError(
            "the rebuilt artifact and the release can't be compared: they were not asked the same",
            hint="Only what the same recipe asks, by the same lm-eval, can be paired.",
            problems=tuple(problems),
        )
    accuracy = estimates.paired_drop(compare.paired_scores(then, now), seed=seed)
    before, after, tokens = compare.paired_windows(then.language, now.language)
    if np.array_equal(before, after):
        # No noise to estimate: the same to the last digit.
        method = f"the same in each of {len(tokens):,} windows"
        perplexity = Estimate(value=1.0, samples=len(tokens), interval=None, method=method)
    else:
        perplexity = estimates.perplexity_ratio(before, after, tokens, seed=seed)
    low, high = 1 / (1 + margins.perplexity), 1 + margins.perplexity
    answers = {
        "accuracy": judge(accuracy, -margins.accuracy, margins.accuracy, 0.0),
        "perplexity": judge(perplexity, low, high, 1.0),
    }
    return Equivalence(accuracy=accuracy, perplexity=perplexity, margins=margins, answers=answers)


def judge(estimate: Estimate, low: float, high: float, none: float) -> Answer:
    """One figure against its margin: `none` is its value when nothing differs.

    `same` when the interval lies within [low, high]; `different` when it doesn't and excludes `none`; else open.
    A figure without an interval is only judged when it is exactly `none`.
    """
    if math.isnan(estimate.value):
        return "undecided"
    interval = estimate.interval
    if interval is None:
        return "same" if estimate.value == none else "undecided"
    if low <= interval.low and interval.high <= high:
        return "same"
    return "undecided" if interval.low <= none <= interval.high else "different"
