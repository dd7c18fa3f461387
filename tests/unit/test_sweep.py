"""Claims about the grid of a sweep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.errors import RecipeError
from qpack.pipeline.stages.catalog import STAGES
from qpack.pipeline.sweep import TO_THE_VERDICT, grid


def test_a_grid_has_every_combination_in_order():
    assert grid(["a.b=1,2", "c=x,y"]) == (("a.b=1", "c=x"), ("a.b=1", "c=y"), ("a.b=2", "c=x"), ("a.b=2", "c=y"))


def test_a_comma_inside_brackets_or_quotes_is_part_of_its_value():
    assert grid(["i=[a,b],[]", 's="x,y",z']) == tuple(
        (f"i={i}", f"s={s}") for i in ("[a,b]", "[]") for s in ('"x,y"', "z")
    )


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_has_as_many_points_as_the_product_of_its_axes_and_none_twice(sizes: list[int]):
    points = grid([f"k{i}={','.join(map(str, range(size)))}" for i, size in enumerate(sizes)])
    assert len(points) == len(set(points)) == math.prod(sizes)


@pytest.mark.parametrize(
    ("vary", "options"),
    [
        ([], ["--vary"]),
        (["group_size"], ["--vary group_size"]),
        (["a=1,,2"], ["--vary a=1,,2"]),
        (["=1", "b"], ["--vary =1", "--vary b"]),
        (["a=1", "a=2"], ["--vary a=2"]),
        (["a=1,1"], ["--vary a=1,1"]),
    ],
)
def test_what_is_no_grid_is_refused_and_each_wrong_value_is_named(vary: list[str], options: list[str]):
    with pytest.raises(RecipeError) as caught:
        grid(vary)
    found = [(problem.code.name, problem.where.option) for problem in caught.value.problems]
    assert found == [("invalid-option", option) for option in options]


def test_a_sweep_stops_at_the_verdict_and_publishes_nothing():
    assert [stage.name for stage in TO_THE_VERDICT][-1] == "judge"
    assert STAGES[: len(TO_THE_VERDICT)] == TO_THE_VERDICT
