"""The matrices of minimal filtering are exact, for any points and either stride."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.exact.cook_toom import cook_toom, every_other_output, is_minimal_filter
from repvgg_ref.exact.points import POINTS, POINTS_OF_STRIDE_2, Point

fractions = st.fractions(-4, 4, max_denominator=8)


@given(st.lists(fractions, min_size=3, max_size=8, unique=True), st.booleans(), st.integers(1, 3))
def test_any_distinct_points_filter_exactly(
    finite: list[Fraction], infinity: bool, taps: int
) -> None:
    points: list[Point] = [*finite, *([math.inf] if infinity else [])]
    matrices = cook_toom(points, taps)
    assert len(matrices.a) == len(points)
    assert len(matrices.a[0]) == len(points) - taps + 1
    assert is_minimal_filter(matrices)


@given(st.lists(fractions, min_size=2, max_size=6, unique=True))
def test_every_other_output_filters_exactly(points: list[Fraction]) -> None:
    assert is_minimal_filter(every_other_output(points), stride=2)


def test_lavin_and_grays_f_2_3() -> None:
    a, b, g = cook_toom((0, 1, -1, math.inf))
    half = Fraction(1, 2)
    assert [list(row) for row in a] == [[1, 0], [1, 1], [1, -1], [0, 1]]
    assert [list(row) for row in g] == [
        [-1, 0, 0],
        [half, half, half],
        [half, -half, half],
        [0, 0, 1],
    ]
    bt = [list(row) for row in zip(*b, strict=True)]
    assert bt == [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]


def test_a_float_stands_for_the_number_that_it_is() -> None:
    assert cook_toom((0, 0.1, 1)).a[1][0] == 1
    assert cook_toom((0, 0.1, 1, 2)).a[1][1] == Fraction(0.1) != Fraction(1, 10)


def test_the_shipped_points_are_exact_in_binary_and_filter() -> None:
    for m, points in POINTS.items():
        assert len(points) == m + 2
        assert is_minimal_filter(cook_toom(points))
    for m, points in POINTS_OF_STRIDE_2.items():
        assert is_minimal_filter(every_other_output(points), stride=2)
        assert len(points) == m + 1
    shipped = [
        p for group in (POINTS, POINTS_OF_STRIDE_2) for points in group.values() for p in points
    ]
    assert all(p == math.inf or Fraction(float(p)) == p for p in shipped)


def test_a_wrong_entry_is_noticed() -> None:
    a, b, g = cook_toom((0, 1, -1, math.inf))
    for i, row in enumerate(g):
        for k, value in enumerate(row):
            wrong = (*row[:k], value + 1, *row[k + 1 :])
            assert not is_minimal_filter(
                type(cook_toom((0, 1, -1)))(a, b, (*g[:i], wrong, *g[i + 1 :]))
            )


@pytest.mark.parametrize("points", [(0, 1, 1), (0, 1), (math.inf, math.inf, 0)])
def test_points_must_be_distinct_and_enough(points: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="distinct points wanted"):
        cook_toom(points)
