"""JSON by strangers: what it says, once, within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.core.documents import pairs, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_what_json_says_is_read(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 1}',
        b'[{"b": {"a": 1, "a": 2}}]',
        b"NaN",
        b"[Infinity]",
        "[1]".encode("utf-16"),
        b"\xef\xbb\xbf[1]",
        b'"\xff"',
        b"",
        b"[1] 2",
        b"[" * 100_000,
        b"9" * 5_000,
    ],
)
def test_what_means_nothing_or_two_things_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(data)


def test_a_document_with_more_values_than_memory_can_hold_is_refused_unread() -> None:
    assert parse(b"[[],[],[]]", most_values=8) == [[], [], []]
    for data in (b"[" + b"[]," * 9 + b"1]", b"[" + b"0," * 9 + b"1]", b'{"a": [{}, {}, {}, {}, {}, {}, {}]}'):
        with pytest.raises(ValueError, match="more than 8 values"):
            parse(data, most_values=8)


def test_a_key_that_is_there_twice_is_seen_twice() -> None:
    assert pairs(b'{"digest": "a", "digest": "b"}') == [("digest", "a"), ("digest", "b")]
