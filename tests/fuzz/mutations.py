"""Hostile neighbours of valid inputs: one strategy for every format that arrives from elsewhere.

`documents(valid)` gives JSON as bytes, `yaml_documents(valid)` YAML as bytes, `neighbours(valid)` plain data for code
that is given parsed values, `damaged(bytes)` any other file. Each takes a valid input apart and changes a few places of
it, so that what comes out is near enough to reach the code behind the first check.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import strategies as st

Path_ = tuple[str | int, ...]

# Texts that mean something to a shell, a terminal, a template, a path, a browser, a unit file, a parser of flags.
HOSTILE_TEXTS = (
    "",
    " ",
    "\n",
    "a\nExecStartPre=+/bin/true",
    "a\r\nX-Header: b",
    "\x00",
    "a\x00b",
    "\x1b]0;title\x07\x1b[2J\x1b[31m",
    "\x9b31m",
    "\u202egnp.exe",
    "a\u2066b\u2069",
    "\u2028\u2029\x85",
    "\ud800",
    "\udfff\ud800",
    "\ufeff\ufffe\uffff",
    "e\u0301" * 50,
    "--trust-remote-code",
    "-",
    "--",
    "-c import os",
    "$(touch owned)",
    "`touch owned`",
    "; touch owned #",
    "'\"\\",
    "%n %i %%",
    "{{ 7 * 7 }}",
    "{% for a in b %}",
    "{{ $labels.instance }}",
    "${HOME}",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "](#) | a | b |\n| --- |",
    "..",
    "../../../../etc/passwd",
    "a/../../b",
    "/etc/passwd",
    "//host/share",
    "C:\\Windows",
    "a/./b",
    "a//b",
    ".",
    "~root/x",
    "file:///etc/passwd",
    "hf://../..@../..",
    "oci://[::1/x",
    "http://[",
    "http://127.0.0.1:99999999/",
    "sha256:",
    "sha256:" + "0" * 64,
    "sha256:" + "g" * 64,
    "sha256:../" + "0" * 60,
    "NaN",
    "1e999",
    "0x10",
    "1_000",
    "\u0661\u0662",
    "\u00b2",
    "true",
    "null",
    "!!python/object/apply:os.system [true]",
    "&a *a",
    "<<",
    "__class__",
    "__proto__",
    "con",
    "a" * 256,
    "a" * 70_000,
    "\u00e9" * 200,
    "(" * 200,
    "((a+)+)+$",
    "re:(.*)*x",
    "[" * 200,
    "2026-01-01T00:00:00Z",
    "9999-99-99T99:99:99Z",
    "0000-00-00",
)
HUGE_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63,
    2**64 - 1,
    -(2**63) - 1,
    10**30,
    -(10**30),
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
)

texts = st.one_of(
    st.sampled_from(HOSTILE_TEXTS),
    st.text(max_size=20),
    st.text(st.characters(categories=("Cc", "Cf", "Cs", "Co", "Zl", "Zp")), min_size=1, max_size=6),
)
numbers = st.one_of(st.sampled_from(HUGE_NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
keys = st.one_of(texts, st.sampled_from(("", "name", "digest", "files", "size", "path", "version", "$schema", "extra")))
values = st.one_of(
    scalars,
    st.just([]),
    st.just({}),
    st.lists(scalars, max_size=3),
    st.dictionaries(keys, scalars, max_size=3),
    st.just([[[[[[]]]]]]),
    st.just({"a": {"b": {"c": [{"d": None}]}}}),
)


@dataclass(frozen=True)
class Raw:
    """Text that goes into a document as it stands: what no parsed value can say."""

    text: str


# What only a text can hold: depths and digits beyond what a parser likes, words that JSON doesn't know.
RAW = (
    Raw("[" * 500 + "]" * 500),
    Raw("[" * 100_000 + "]" * 100_000),
    Raw('{"a":' * 500 + "1" + "}" * 500),
    Raw('{"a":' * 100_000 + "1" + "}" * 100_000),
    Raw("9" * 5_000),
    Raw("-" + "9" * 400),
    Raw("1e999"),
    Raw("-1E+9999"),
    Raw("0." + "0" * 400 + "1"),
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("1.0"),
    Raw("01"),
    Raw("'a'"),
    Raw('"\\ud800"'),
    Raw('"\\u0000"'),
    Raw('"\ud800"'),
    Raw(""),
    Raw("/* a */ 1"),
    Raw("[1,]"),
)


def paths(value: Any, at: Path_ = ()) -> list[Path_]:
    """Every place in `value`, the whole included."""
    if isinstance(value, dict):
        inner = [deeper for key, item in value.items() for deeper in paths(item, (*at, key))]
    elif isinstance(value, list):
        inner = [deeper for index, item in enumerate(value) for deeper in paths(item, (*at, index))]
    else:
        inner = []
    return [at, *inner]


def get(value: Any, at: Path_) -> Any:
    """What stands at a place."""
    for part in at:
        value = value[part]
    return value


def put(value: Any, at: Path_, new: Any) -> Any:
    """A copy of `value` with `new` at a place."""
    if not at:
        return new
    first, rest = at[0], at[1:]
    if isinstance(value, dict):
        return {key: put(item, rest, new) if key == first else item for key, item in value.items()}
    return [put(item, rest, new) if index == first else item for index, item in enumerate(value)]


def without(value: Any, at: Path_) -> Any:
    """A copy of `value` without what stands at a place."""
    parent = get(value, at[:-1])
    if isinstance(parent, dict):
        left: Any = {key: item for key, item in parent.items() if key != at[-1]}
    else:
        left = [item for index, item in enumerate(parent) if index != at[-1]]
    return put(value, at[:-1], left)


@st.composite
def _once(draw: st.DrawFn, value: Any, raw: bool) -> Any:
    """`value` with one change at one place."""
    at = draw(st.sampled_from(paths(value)))
    here = get(value, at)
    how = draw(st.sampled_from(("replace", "replace", "text", "delete", "add", "wrap", "swap", "repeat", "raw")))
    if how == "text" and isinstance(here, str) and here:
        cut = draw(st.integers(0, len(here)))
        return put(value, at, here[:cut] + draw(texts) + here[cut:])
    if how == "delete" and at:
        return without(value, at)
    if how == "add" and isinstance(here, dict):
        return put(value, at, {**here, draw(keys): draw(values)})
    if how == "add" and isinstance(here, list):
        return put(value, at, [*here, draw(values)])
    if how == "wrap":
        return put(value, at, draw(st.sampled_from(([here], {"a": here}, [[here, here]], str(here)[:200]))))
    if how == "swap":
        return put(value, at, get(value, draw(st.sampled_from(paths(value)))))
    if how == "repeat" and isinstance(here, list) and here:
        return put(value, at, here * draw(st.sampled_from((2, 50))))
    if how == "raw" and raw:
        return put(value, at, draw(st.sampled_from(RAW)))
    return put(value, at, draw(values))


@st.composite
def neighbours(draw: st.DrawFn, valid: Any, raw: bool = False) -> Any:
    """Plain data near `valid`: one to three places hold another type, a hostile text, something more or nothing."""
    value = valid
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        value = draw(_once(value, raw))
        if isinstance(value, Raw):
            break
    return value


def encode(value: Any, twice: Path_ | None = None, at: Path_ = ()) -> str:
    """JSON of `value` with its raw parts as they are; the key at `twice` is written two times."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            text = f"{json.dumps(key)}: {encode(item, twice, (*at, key))}"
            items += [text, text] if (*at, key) == twice else [text]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(encode(item, twice, (*at, index)) for index, item in enumerate(value)) + "]"
    return json.dumps(value)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """The file cut, with flipped bits, bytes put in or taken out, another encoding, or something else altogether."""
    how = draw(st.sampled_from(("cut", "flip", "insert", "drop", "double", "encode", "other", "pad")))
    place = draw(st.integers(0, max(len(valid) - 1, 0)))
    if how == "cut":
        return valid[:place]
    if how == "flip" and valid:
        changed = bytearray(valid)
        for at in draw(st.lists(st.integers(0, len(valid) - 1), min_size=1, max_size=4)):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "insert":
        return valid[:place] + draw(st.binary(min_size=1, max_size=8)) + valid[place:]
    if how == "drop":
        return valid[:place] + valid[place + draw(st.integers(1, 16)) :]
    if how == "double":
        return valid + valid
    if how == "encode":
        text = valid.decode("utf-8", "replace")
        return text.encode(draw(st.sampled_from(("utf-16", "utf-32", "utf-8-sig", "utf-7"))), "replace")
    if how == "pad":
        return draw(st.sampled_from((b"\n" * 5_000, b"\x00" * 100, b" " * 70_000))) + valid
    return draw(st.one_of(st.binary(max_size=64), st.sampled_from((b"", b"\xff\xfe", b"null", b"[]", b"0", b'""'))))


@st.composite
def documents(draw: st.DrawFn, valid: Any) -> bytes:
    """A JSON file near the one that `valid` makes: changed as data, as text (keys twice, depth), or as bytes."""
    value = draw(neighbours(valid, raw=True)) if draw(st.integers(0, 9)) else valid
    twice = draw(st.sampled_from(paths(value))) if draw(st.integers(0, 7)) == 0 else None
    content = encode(value, twice).encode("utf-8", "surrogatepass")
    return draw(damaged(content)) if draw(st.integers(0, 4)) == 0 else content


@st.composite
def json_lines(draw: st.DrawFn, valid: list[Any]) -> bytes:
    """A JSONL file near the one that the rows of `valid` make."""
    rows = [encode(row).encode() for row in valid]
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        rows[at] = draw(documents(valid[at]))
    content = draw(st.sampled_from((b"\n", b"\n", b"\r\n", b"\n\n", b""))).join(rows)
    return draw(damaged(content)) if draw(st.integers(0, 4)) == 0 else content


# Anchors that grow, tags, merge keys, documents after the first: what YAML has beside data.
YAML_TEXTS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "&a {name: *a}\n",
    "&a [*a, *a]\n",
    "name: !!python/object/apply:os.system [true]\n",
    "name: !!binary aGVsbG8=\n",
    "name: !!timestamp 2026-01-01\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "<<: {name: a}\nname: b\n",
    "a: 1\n---\nb: 2\n",
    "%YAML 9.9\n---\na: 1\n",
    "- " * 5_000 + "a\n",
    "{a: " * 5_000 + "b" + "}" * 5_000,
    "a: '" + "x" * 70_000 + "'\n",
    "a: " + "9" * 5_000 + "\n",
    "a: !!int " + "9" * 5_000 + "\n",
    "a: !!int x\n",
    "a: !!float x\n",
    "a: !!bool x\n",
    "a: !!int 1:1\n",
    "a: .nan\nb: .inf\n",
    "a: \x00\n",
    "a: \u202e\n",
    "\t- a\n",
    "*a\n",
    "a: |\n b\n c: d\n",
    "--- !!set {a, b}\n",
    "--- !!map [a]\n",
    "--- !!seq {a: b}\n",
)


@st.composite
def yaml_documents(draw: st.DrawFn, valid: Any) -> bytes:
    """A YAML file near the one that `valid` makes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(YAML_TEXTS)).encode()
    if draw(st.booleans()):
        # JSON is YAML, and says what PyYAML wouldn't write.
        return draw(documents(valid))
    content = yaml.safe_dump(draw(neighbours(valid)), sort_keys=False, allow_unicode=True).encode("utf-8", "replace")
    if draw(st.integers(0, 4)) == 0:
        content += draw(st.sampled_from(YAML_TEXTS)).encode()
    return draw(damaged(content)) if draw(st.integers(0, 4)) == 0 else content
