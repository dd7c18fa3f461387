"""Whatever a release or a checkpoint calls anything, the card shows it as text: parsed back by a Markdown reader."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from qpack.core.records import Release
from registry.release import card, markdown
from tests.unit import hostile_texts
from tests.unit.hostile_texts import texts, whole, with_fields

EXAMPLES = int(os.environ.get("QPACK_TEST_EXAMPLES", "100"))
# GitHub's dialect: tables, strikethrough, and links that are made of bare addresses (`linkify`, fuzzy ones included).
READER = MarkdownIt("gfm-like", {"linkify": True, "html": True})
READER.linkify.set({"fuzzy_link": True, "fuzzy_email": True, "fuzzy_ip": True})  # type: ignore[union-attr]


def flat(tokens: list[Token] | None) -> Iterator[Token]:
    for token in tokens or ():
        yield token
        yield from flat(token.children)


def shape(text: str) -> list[str]:
    """Every block and inline element, without what it says. Code spans and escapes are ways to write text."""
    text_alone = {"text", "code_inline", "text_special", "softbreak", "inline"}
    return [token.type + token.tag for token in flat(READER.parse(text)) if token.type not in text_alone]


def links(text: str) -> list[str]:
    return [
        str(t.attrs.get("href") or t.attrs.get("src"))
        for t in flat(READER.parse(text))
        if t.type in ("link_open", "image")
    ]


def shown(text: str) -> str:
    """What a reader sees of one paragraph."""
    (inline,) = [token for token in READER.parse(text) if token.type == "inline"]
    return "".join(" " if t.type == "softbreak" else t.content for t in inline.children or ())


@given(texts)
@settings(max_examples=EXAMPLES)
def test_a_text_in_a_line_is_read_as_it_is(text: str) -> None:
    for line in (markdown.text(text), f"{markdown.text(text)} behind", f"before {markdown.text(text)}"):
        if str(line).strip():
            assert shape(line) == ["paragraph_openp", "paragraph_closep"]
    # Between words: the blanks at a line's ends are no text in Markdown. Outside a table a bar in code has its escape.
    read = shown(f"before {markdown.text(text)} behind")
    assert f"before {markdown.one_line(text)} behind" in (read, read.replace("\\|", "|"))


@given(texts)
@settings(max_examples=EXAMPLES)
def test_a_text_in_a_cell_stays_in_its_cell(text: str) -> None:
    for form in (markdown.text, markdown.code):
        table = f"| a | b | c |\n|---|---|---|\n| {form(text)} | {form(text)} | end |\n"
        cells = [t.content for t in READER.parse(table) if t.type == "inline"]
        assert len(cells) == 6
        assert cells[5] == "end"
        assert not links(table)
        assert shape(table) == shape("| a | b | c |\n|---|---|---|\n| x | x | end |\n")


@given(texts)
def test_a_text_in_a_code_span_or_block_does_not_end_it(text: str) -> None:
    if line := markdown.code(text):
        (inline,) = [t for t in READER.parse(f"before {line} behind") if t.type == "inline"]
        assert [t.type for t in inline.children or ()] == ["text", "code_inline", "text"]
    assert [t.type for t in READER.parse(markdown.block(text, "sh"))] == ["fence"]


def parts(text: str) -> tuple[dict[str, Any], str]:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1]), text[found.end() :]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return whole(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def plain(release: Release) -> list[str]:
    return shape(parts(card.render(*with_fields(release, itertools.repeat("plain"))))[1])


def check(whole: Release, plain: list[str], words: Iterator[str]) -> None:
    release, serving = with_fields(whole, words)
    metadata, body = parts(card.render(release, serving))
    assert metadata == card.metadata(release)
    assert not [token for token in flat(READER.parse(body)) if token.type.startswith("html")]
    assert set(links(body)) <= {"#gates", "https://huggingface.co/a/b"}
    assert shape(body) == plain
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", body)


@pytest.mark.parametrize("words", hostile_texts.rounds())
def test_a_card_has_no_markup_of_anybody_else(words: tuple[str, ...], release: Release, plain: list[str]) -> None:
    check(release, plain, itertools.cycle(words))


def test_a_card_of_empty_texts_has_the_same_tables(release: Release, plain: list[str]) -> None:
    for text in ("", "   ", "\x85"):
        body = parts(card.render(*with_fields(release, itertools.repeat(text))))[1]
        assert [t for t in shape(body) if t.startswith(("t", "heading", "fence"))] == [
            t for t in plain if t.startswith(("t", "heading", "fence"))
        ]


@given(words=st.lists(texts.filter(markdown.one_line), min_size=20, max_size=40))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_of_several_fields_make_no_markup_together(words: list[str], release: Release, plain: list[str]) -> None:
    check(release, plain, itertools.cycle(words))
