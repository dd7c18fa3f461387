"""Claims about greedy answers at one request and at many."""

from __future__ import annotations

import pytest

from evals.workers.under_load import TIE, departure

ALONE = ["a", "b", "c"]
LISTED = [{"a": -0.1, "x": -5.0}, {"b": -0.7, "y": -0.9, "z": -6.0}, {"c": -0.1, "w": -4.0}]


def test_the_same_answer_has_no_departure() -> None:
    assert departure(ALONE, LISTED, ALONE) is None


def test_two_tokens_that_are_about_equal_may_change_places_and_what_follows_is_another_text() -> None:
    assert departure(ALONE, LISTED, ["a", "y", "q"]) is None


@pytest.mark.parametrize(("loaded", "at"), [(["x", "b", "c"], 0), (["a", "z", "c"], 1), (["a", "b", "unlisted"], 2)])
def test_a_token_that_is_far_less_probable_is_a_departure(loaded: list[str], at: int) -> None:
    found = departure(ALONE, LISTED, loaded)
    assert found is not None
    assert found[0] == at
    assert found[1] > TIE


def test_a_token_beyond_a_list_of_equals_shows_nothing() -> None:
    assert departure(["a"], [{"a": -0.7, "b": -0.8}], ["q"]) is None
