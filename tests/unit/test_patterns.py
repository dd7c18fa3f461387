"""Claims about the expressions that name layers: Python's answer, with bounded work."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.checkpoint import patterns
from quantize.checkpoint.patterns import PatternError, compiled

# Each doubles the ways, or nearly, with every letter of a name: `re` takes longer than anybody waits.
EXPONENTIAL = [
    r"(a+)+$",
    r"(a|a)*b",
    r"(a|aa)+$",
    r"([a-z.]+)*x$",
    r"(.*)*b",
    r"(\w+\.?)+!",
    r"(?:a?){60}a{60}!",
    r"(?=(a+)+$b)",
    r"(?!(a+)+b)a",
    r"(?:(?:(?:a+)+)+)+b",
    "a?" * 60 + "a" * 60 + "!",
    ".*.*.*.*.*.*.*.*.*.*b",
    "(?:(?:a{0,99}){0,99}){0,99}b",
]


@pytest.mark.parametrize("expression", EXPONENTIAL)
def test_an_exponential_expression_is_answered_within_bounded_steps(expression: str) -> None:
    compiled(expression)("a" * 200)


@pytest.mark.parametrize(
    ("expression", "name", "matches"),
    [
        (r"(a+)+$", "a" * 64, True),
        (r"(a+)+$", "a" * 64 + "!", False),
        (r"(?:[^.]+\.)*lm_head", "model.text.lm_head", True),
        (r".*layers.*mlp.*down_proj.*x?", "model.layers.3.mlp.down_proj", True),
        (r".*layers.*mlp.*down_proj.*x", "model.layers.3.mlp.down_proj", False),
        (r"(?!.*(?:vision|audio)).*(?:[a-z]+\.)*mlp", "model.vision.mlp", False),
    ],
)
def test_many_ways_are_followed_at_once(expression: str, name: str, matches: bool) -> None:
    assert compiled(expression)(name) is matches


@pytest.mark.parametrize(
    "expression",
    [
        *("(", "[", "a{2}{3}{", "*", r"\p", "(?P<a>", "(?i)(a+)+[b-z]$", r"(a+)+\1$", r"(?>a+)(b+)+$"),
        *("a" * 10_001, "(" * 3000 + ")" * 3000, "(?:a{9999})*(b+)+$", "(?i)[\0-\U0010ffff]"),
    ],
)
def test_what_can_not_be_matched_within_bounds_is_refused(expression: str) -> None:
    with pytest.raises(PatternError):
        compiled(expression)("a" * 64)


ATOMS = st.sampled_from(["a", "b", ".", r"\.", r"\d", r"\w", r"\W", "[ab]", "[^a]", "[a-c.]", r"[^\d.]", r"\b", r"\B",
                         "^", "$", r"\Z", r"\s", "", "(?!)"])  # fmt: skip
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{0,3}", "{2,}"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"(?!{one})"),
        st.sampled_from([r"(?<=a)", r"(?<!\.)", r"(?<=ab)", r"(?<![ab]\d)"]),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.text("ab.1\n é", min_size=1, max_size=8))
@settings(max_examples=400)
def test_the_answer_is_pythons(expression: str, name: str) -> None:
    tree = patterns._parser.parse(expression)
    assert bool(patterns._ends(tree, 1, patterns._Name(name))) == (re.match(expression, name) is not None)
    assert compiled(expression)(name) == (re.match(expression, name) is not None)
