"""Claims about lines of text: on a terminal they fit, and nothing of them is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qpack.cli.render.text import folded

words = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30), min_size=1)


@given(words, st.integers(40, 200), st.integers(0, 14))
def test_a_long_line_is_folded_between_words_and_loses_none(found: list[str], width: int, indent: int) -> None:
    text = " " * indent + " ".join(found)
    lines = folded(text, width, indent).split("\n")
    assert " ".join(lines).split() == found
    assert all(one.startswith(" " * indent) for one in lines if one)
    for one in lines:
        assert len(one) <= width or len(one.split()) == 1


@given(words)
def test_a_line_that_fits_is_as_it_was(found: list[str]) -> None:
    text = "  label     " + " ".join(found)
    assert folded(text, len(text) + 1, 12) == text
