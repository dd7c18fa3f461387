"""When two rebuilds count as one: the answer follows the interval, and few samples never make two things the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison.equivalence import Answer, Margins, equivalence, judge
from qpack.core.errors import EvaluateError
from qpack.core.records import Estimate, Evidence, Interval, Sample, Window
from tests.codes import coded
from tests.unit.registry_examples import release

MARGINS = Margins(accuracy=0.02, perplexity=0.02)


def evidence(nll: np.ndarray, scores: np.ndarray) -> Evidence:
    """Evidence with these windows [n] (nats, of 100 tokens each) and one task with these scores [n]."""
    found = release().artifact
    windows = tuple(Window(nll=float(value), tokens=100) for value in nll)
    task = found.accuracy.tasks[0]
    samples = tuple(Sample(id=str(i), score=float(score)) for i, score in enumerate(scores))
    tasks = (task.model_copy(update={"samples": samples}),)
    return found.model_copy(
        update={
            "language": found.language.model_copy(update={"windows": windows}),
            "accuracy": found.accuracy.model_copy(update={"tasks": tasks}),
        }
    )


def measured(n: int, *, shift: float = 0.0, flips: float = 0.0, seed: int = 0) -> tuple[Evidence, Evidence]:
    """The release's evidence and that of a rebuild whose nll is `shift` nats a token higher and that loses a share
    `flips` of its right answers.
    """
    dice = np.random.default_rng(seed)
    nll, scores = dice.normal(300, 30, n), (dice.random(n) < 0.6).astype(float)
    later = nll + 100 * (shift + dice.normal(0, 0.002, n))
    lost = scores * (dice.random(n) >= flips)
    return evidence(nll, scores), evidence(later, lost)


def answer(n: int, **how: float) -> Answer:
    return equivalence(*measured(n, **how), MARGINS).answer  # type: ignore[arg-type]


def test_what_differs_less_than_the_margin_is_the_same_and_what_differs_more_is_not() -> None:
    assert answer(2000) == "same"
    assert answer(2000, shift=0.005) == "same", "it differs for certain, and by less than matters"
    assert answer(2000, shift=0.05) == "different"
    assert answer(2000, flips=0.1) == "different"


def test_few_samples_never_show_that_two_are_the_same() -> None:
    assert answer(12) == "undecided"


def test_the_very_same_evidence_is_the_same_where_there_is_enough_of_it() -> None:
    then, _ = measured(2000)
    found = equivalence(then, then, MARGINS)
    assert (found.answer, found.perplexity.value, found.accuracy.value) == ("same", 1.0, 0.0)


def test_where_it_ran_does_not_count_and_what_was_asked_does() -> None:
    then, now = measured(2000)
    elsewhere = now.model_copy(update={"hardware": now.hardware.model_copy(update={"name": "another", "cores": 99})})
    assert equivalence(then, elsewhere, MARGINS) == equivalence(then, now, MARGINS)
    other = now.model_copy(update={"language": now.language.model_copy(update={"text_digest": "0" * 64})})
    with pytest.raises(EvaluateError, check=coded("not-comparable")):
        equivalence(then, other, MARGINS)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_an_answer_follows_the_interval(value: float, below: float, above: float, margin: float) -> None:
    interval = Interval(low=value - below, high=value + above, confidence=0.9)
    found = judge(Estimate(value=value, samples=9, interval=interval, method=""), -margin, margin, 0.0)
    if found == "same":
        assert -margin <= interval.low <= interval.high <= margin
    elif found == "different":
        assert interval.low > 0 or interval.high < 0
    wider = judge(Estimate(value=value, samples=9, interval=interval, method=""), -9.0, 9.0, 0.0)
    assert wider == "same"


def test_without_an_interval_only_no_difference_at_all_is_the_same() -> None:
    def of(value: float) -> Answer:
        return judge(Estimate(value=value, samples=3, interval=None, method=""), 0.9, 1.1, 1.0)

    assert [of(1.0), of(1.001), of(math.nan)] == ["same", "undecided", "undecided"]
