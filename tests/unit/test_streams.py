"""When a stream says what a whole answer says, and that the first questions and the canary judge it alike."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.workers import streams

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("whole", "streamed", "same"),
    [
        (["a"], ["a"], True),
        (["a", "b"], ["b", "b"], True),
        (["a", "c"], ["b", "a"], True),  # a near-tie went the other way in between
        (["a", "a", "a"], ["b", "b", "b"], False),
        (["a", "a", "a", "b"], ["b", "b", "b", "b"], False),
    ],
)
def test_a_stream_is_the_same_when_it_equals_any_whole_answer_so_far(
    whole: list[str], streamed: list[str], same: bool
) -> None:
    asked = iter(whole), iter(streamed)
    assert streams.agree(lambda: next(asked[0]), lambda: next(asked[1]))[:2] == (same, whole[0])


@given(st.lists(st.sampled_from("ab"), min_size=3, max_size=3), st.text("xyz", min_size=1))
def test_a_stream_that_no_whole_answer_ever_gave_is_never_the_same(answers: list[str], other: str) -> None:
    given_: Iterator[str] = itertools.cycle(answers)
    assert streams.agree(lambda: next(given_), lambda: other) == (False, answers[0], other)


@pytest.mark.parametrize("file", ["evals/server/first_questions.py", "evals/workers/canary_worker.py"])
def test_both_judge_by_this_rule(file: str) -> None:
    calls = [ast.unparse(n.func) for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.Call)]
    assert calls.count("streams.agree") == 1
