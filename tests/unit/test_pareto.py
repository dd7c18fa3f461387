"""Laws of the Pareto front."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.stats.pareto import front

points = st.lists(st.tuples(*[st.integers(0, 6).map(float)] * 3), min_size=1, max_size=12)


def test_what_is_beaten_in_every_respect_is_off_the_front():
    assert front([(1, 1), (2, 2), (3, 0), (2, 1)]) == (False, True, True, False)


@given(points)
def test_there_is_always_a_front_and_what_is_off_it_is_beaten_by_something_on_it(cloud: list[tuple[float, ...]]):
    on = front(cloud)
    assert any(on)
    for point, kept in zip(cloud, on, strict=True):
        better = [
            other
            for other, other_kept in zip(cloud, on, strict=True)
            if other_kept and other != point and all(a >= b for a, b in zip(other, point, strict=True))
        ]
        assert bool(better) != kept


@given(points)
def test_equal_points_share_their_fate_and_a_front_is_its_own_front(cloud: list[tuple[float, ...]]):
    on = front(cloud)
    for point, kept in zip(cloud, on, strict=True):
        assert {k for p, k in zip(cloud, on, strict=True) if p == point} == {kept}
    kept_points = [point for point, kept in zip(cloud, on, strict=True) if kept]
    assert all(front(kept_points))


def test_a_figure_that_is_no_number_is_off_the_front_and_beats_nothing():
    assert front([(math.nan, 9), (1, 1)]) == (False, True)


def test_points_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        front([(1, 2), (1,)])
