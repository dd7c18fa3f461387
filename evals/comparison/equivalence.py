"""Equivalence: do two measurements of what should be the same model agree within a margin? Pure.

Two one-sided tests (Schuirmann, J. Pharmacokin. Biopharm. 15 (1987); Lakens, Soc. Psychol. Personal. Sci. 8 (2017)):
a paired difference is within the margin when its whole two-sided 90 % interval is, so each side is a test at 5 %. Too
few samples leave the answer undecided: no difference found doesn't mean equivalent.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from evals.comparison import compare
from evals.stats import estimates
from qpack.core.errors import EvaluateError
from qpack.core.frozen import Frozen
from qpack.core.problems import Code
from qpack.core.records import Estimate, Evidence

_NOT_COMPARABLE = Code("not-comparable", "A rebuilt artifact and its release were asked different tasks or texts.")

Answer = Literal["same", "different", "undecided"]


class Margins(Frozen):
    """The largest accepted differences: of accuracy absolute (mean over tasks), of perplexity relative."""

    accuracy: float = 0.02
    perplexity: float = 0.02


class Equivalence(Frozen):
    """Paired differences: `accuracy` is then minus now, `perplexity` now over then."""

    accuracy: Estimate
    perplexity: Estimate
    margins: Margins
    answers: dict[str, Answer]

    @property
    def answer(self) -> Answer:
        """`different` if any figure is, else `undecided` if any is, else `same`."""
        found = self.answers.values()
        return next((a for a in ("different", "undecided") if a in found), "same")


def equivalence(then: Evidence, now: Evidence, margins: Margins, *, seed: int = 0) -> Equivalence:
    """Compare the evidence of a rebuilt artifact (`now`) with that of the release (`then`), sample by sample.

    The machines may differ. Raises EvaluateError when tasks or texts differ.
    """
    problems = compare.pairing_problems(then, now)
    if problems:
        raise EvaluateError(
            _NOT_COMPARABLE,
            "the rebuilt artifact and the release can't be compared: tasks or texts differ",
            hint="Rebuild with the release's recipe and lm-eval version.",
            problems=tuple(problems),
        )
    accuracy = estimates.paired_drop(compare.paired_scores(then, now), seed=seed)
    before, after, tokens = compare.paired_windows(then.language, now.language)
    if np.array_equal(before, after):
        # Equal to the last digit: no noise to estimate.
        method = f"equal in each of {len(tokens):,} windows"
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
    """One figure and its margin: `none` is its value when nothing differs.

    `same` when the interval lies within [low, high]; `different` when it doesn't and excludes `none`; else `undecided`.
    Without an interval: `same` when the value is exactly `none`, else `undecided`.
    """
    if math.isnan(estimate.value):
        return "undecided"
    interval = estimate.interval
    if interval is None:
        return "same" if estimate.value == none else "undecided"
    if low <= interval.low and interval.high <= high:
        return "same"
    return "undecided" if interval.low <= none <= interval.high else "different"
