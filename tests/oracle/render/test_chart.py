"""Where the marks of the drawing go."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.oracle.render.chart import ROW, TOP, Chart, chart
from tests.oracle.render.reports import INFINITY, NAN, agreeing, disagreeing, layer


def drawn(*ratios: float) -> Chart:
    layers = tuple(
        replace(layer(f"l{i}", ratio, ok=ratio <= 1), likely_ratio=ratio)
        for i, ratio in enumerate(ratios)
    )
    return chart(replace(agreeing(), layers=layers))


def test_the_axis_is_logarithmic_and_the_bound_is_at_one() -> None:
    found = drawn(1e-3, 1e-2, 1.0, 10.0)
    positions = [row.x for row in found.rows]
    assert positions == [0.0, 25.0, 75.0, 100.0]
    assert found.bound_x == 75.0
    assert [t.label for t in found.ticks if t.x == found.bound_x] == ["1"]


@given(st.lists(st.floats().map(abs), min_size=1))
def test_every_mark_is_inside_and_on_the_right_side_of_the_bound(ratios: list[float]) -> None:
    found = drawn(*ratios)
    assert 0 < found.bound_x < 100
    assert len(found.rows) == len(ratios)
    for row, ratio in zip(found.rows, ratios, strict=True):
        if ratio != ratio:
            assert (row.state, row.x, row.likely_x) == ("void", None, None)
            continue
        assert row.x is not None
        assert 0 <= row.x <= 100
        assert not (ratio <= 1 and row.x > found.bound_x)
        assert not (ratio > 1 and row.x < found.bound_x)


def test_what_is_beyond_the_axis_gets_an_arrow() -> None:
    assert [row.beyond_axis for row in drawn(0.1, 99.0, 3e36, INFINITY, NAN).rows] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_rows_follow_the_network_and_the_first_bad_layer_is_marked() -> None:
    report = disagreeing()
    found = chart(report)
    assert [row.name for row in found.rows] == [known.name for known in report.layers]
    assert [row.name for row in found.rows if row.is_first_bad] == ["stage2.1"]
    assert [row.y for row in found.rows[:2]] == [TOP + ROW / 2, TOP + 1.5 * ROW]
    assert found.height == TOP + ROW * len(report.layers)
    title = next(row.title for row in found.rows if row.name == "stage3.3")
    assert "within its bound, but eps shows" in title
    assert "certified bound 1e-05" in title


@pytest.mark.parametrize("lowest", [1e-3, 1e-5, 1e-12])
@pytest.mark.parametrize("highest", [1.0, 1e4, 1e30])
def test_there_are_labels_but_no_more_than_fit_a_phone(lowest: float, highest: float) -> None:
    labels = [tick.label for tick in drawn(lowest, highest).ticks if tick.label]
    assert 2 <= len(labels) <= 7
