"""Answers over chat that show a broken model, whatever their scores: they never end, or there are none.

`MOST` of a model's answers to a task are cut at the limit of tokens, loop, or are empty (at most one token, the end).
If the baseline's aren't, the artifact is broken (fail): it lost the token that ends an answer, or the start of one. If
they are too, or only the baseline's are, the budget or the template was measured and not the model (undecided).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qpack.core.records import Estimate, Generated, Outcome, TaskScore

MOST = 0.9
"""A model does something always: a convention."""
SELDOM = 0.5
"""Below this share, the other model doesn't."""
FEWEST = 8
"""Fewer answers show nothing."""


@dataclass(frozen=True)
class Finding:
    """What a gate result is made from."""

    code: str
    bound: float
    estimate: Estimate
    outcome: Outcome
    why: str


_SIGNS: tuple[tuple[str, Callable[[Generated], int]], ...] = (
    ("empty", lambda item: sum(tokens <= 1 for tokens in item.tokens)),
    ("endless loops", lambda item: item.looped),
    ("cut at the limit of tokens", lambda item: item.truncated),
)


def check(baseline: Sequence[TaskScore], artifact: Sequence[TaskScore]) -> Iterator[Finding]:
    """The first sign of each code; the artifact's own fault first."""
    found: dict[str, Finding] = {}
    for before, after in zip(baseline, artifact, strict=False):
        for name, count in _SIGNS:
            if (finding := _sign(name, before, after, count)) is not None:
                found.setdefault(finding.code, finding)
    yield from found.values()


def _sign(name: str, before: TaskScore, after: TaskScore, count: Callable[[Generated], int]) -> Finding | None:
    b, a = (_share(task, count) for task in (before, after))
    if a.samples >= FEWEST and a.value >= MOST and b.value < SELDOM:
        why = (
            f"{after.task}: {a.value:.0%} of the artifact's answers are {name}, of the baseline's {b.value:.0%}. Look "
            "at them: the end token, the chat template, or the weights are damaged."
        )
        return Finding("artifact-answers", MOST, a, "fail", why)
    if min(a.samples, b.samples) >= FEWEST and max(a.value, b.value) >= MOST:
        why = (
            f"{after.task}: {b.value:.0%} of the baseline's answers and {a.value:.0%} of the artifact's are {name}, so "
            "the task says little of either. Raise `generate.max_tokens`, or look at the prompt and the chat template."
        )
        return Finding("baseline-answers", MOST, b, "undecided", why)
    return None


def _share(task: TaskScore, count: Callable[[Generated], int]) -> Estimate:
    answers = sum(len(item.tokens) for item in task.generated)
    found = sum(count(item) for item in task.generated)
    return Estimate(
        value=found / answers if answers else 0.0, samples=answers, interval=None, method="share of answers"
    )
