"""What the study of advice found, and that the page on integers says it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.studies.integer.advice_report import (
    FIGURE,
    PAGE,
    RESULTS,
    Compared,
    compared,
    page_of,
    picture,
    summary,
    text,
)
from tests.studies.integer.margins_study import additive, by_class, counted
from tests.studies.integer.margins_study import text as losses_text

ROWS: list[dict[str, Any]] = json.loads((RESULTS / "advice.json").read_text(encoding="utf-8"))


def test_page_table_and_picture_are_what_was_measured() -> None:
    said = PAGE.read_text(encoding="utf-8")
    assert page_of(said) == said
    assert (RESULTS / "advice.md").read_text(encoding="utf-8") == text(ROWS)
    for path in (FIGURE, RESULTS / "advice.svg"):
        assert path.read_text(encoding="utf-8") == picture(ROWS)


def test_advice_holds_within_a_factor_of_two() -> None:
    """The claim that must hold: of gains of a point or more, predicted on other images."""
    found = list(compared(ROWS))
    count = summary(found)
    assert count.gains >= 50
    assert count.within_two >= 0.9 * count.gains
    assert count.compatible >= 0.85 * count.gains
    assert {row["network"] for row in ROWS} >= {"mnist repvgg", "mnist qarepvgg", "digits repvgg"}


def test_as_trained_no_way_costs_what_the_pictures_show() -> None:
    """As the page says: zero is in every interval of the loss of one scale a tensor."""
    for row in ROWS:
        if row["factor"] == 1:
            low, high = row["measured"]["float"]["gain"]["interval"]
            assert low <= 0 <= high, row["network"]


def gain(by: float, half: float) -> tuple[float, float, float]:
    return (by, by - half, by + half)


@pytest.mark.parametrize(
    ("predicted", "measured", "within", "compatible"),
    [
        (gain(0.02, 0.015), gain(0.039, 0.015), True, True),
        (gain(0.02, 0.015), gain(0.041, 0.015), False, True),
        (gain(0.02, 0.002), gain(0.041, 0.002), False, False),
        (gain(0.5, 0.01), gain(0.45, 0.01), True, False),
        (gain(0.02, 0.015), gain(-0.01, 0.004), False, False),
    ],
)
def test_gains_are_compared_by_ratio_and_by_interval(
    predicted: Any, measured: Any, within: bool, compatible: bool
) -> None:
    found = Compared({}, "equalized", predicted, measured)
    assert (found.within_two, found.compatible) == (within, compatible)


def test_the_table_of_losses_is_what_was_measured() -> None:
    losses = json.loads((RESULTS / "margins.json").read_text(encoding="utf-8"))
    assert (RESULTS / "margins.md").read_text(encoding="utf-8") == losses_text(losses)


def test_smoothing_counts_what_noise_may_take() -> None:
    """Two classes apart by 1: noise of 2 on one image of four takes a quarter, lent or not."""
    z = np.array([[1.0, 0.0]] * 4)
    q = z + np.array([[0.0, 0.0]] * 3 + [[0.0, 2.0]])
    labels = np.zeros(4, int)
    assert counted(z, q, labels) == additive(z, q, labels) == by_class(z, q, labels) == 0.25
    far = np.array([[1.0, 0.0]] * 3 + [[9.0, 0.0]])  # the noisy image is the safest one
    assert counted(far, far + (q - z), labels) == 0
    assert additive(far, far + (q - z), labels) == 3 / 16
