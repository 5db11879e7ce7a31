"""Means at an exact half: float32 sends them either way, and all else stays wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.oracle.integers.report import IntegerReport
from tests.integer.networks import quantization
from tests.oracle.test_integer_means import pool_of, pooled, ratio, rows_of

HALF = Fraction(1, 2)


def up(mean: Fraction) -> int:
    return floor(mean + HALF)


def down(mean: Fraction) -> int:
    return ceil(mean - HALF)


def judged_mean(
    layer: IntegerLayer, whole: Callable[[Fraction], int], rounding: str, side: int = 2
) -> IntegerReport:
    """The report on a pool that makes `whole` of every exact mean."""
    x = rows_of(layer, side)[:4, :24]
    return pooled(layer, x, lambda acc, n: whole(ratio(layer) * acc / n), rounding)


@pytest.mark.parametrize("rounding", ["float-even", "dequantized"])
@pytest.mark.parametrize(
    ("scale", "zero"), [(0.033449750393629074, -128), (0.018660761415958405, -128)]
)
def test_halves_go_as_openvino_sends_them(scale: float, zero: int, rounding: str) -> None:
    """All up with the one scale, all down with the other: seen in 2026.4 on a CPU without VNNI."""
    side = quantization(scale, zero)
    layer = replace(pool_of("equal"), input=side, output=side)
    whole, other = (up, down) if scale > 0.02 else (down, up)
    report = judged_mean(layer, whole, rounding)
    assert report.verdict == "agree", report.reason
    assert any("as OpenVINO does" in note for note in report.notes), report.notes
    assert not any("OpenVINO" in note for note in judged_mean(layer, other, rounding).notes)


def test_halves_may_go_either_way_in_float32_alone() -> None:
    layer = pool_of("equal")
    turn = iter(range(10**6))

    def either(mean: Fraction) -> int:
        return (up if next(turn) % 3 else down)(mean)

    report = judged_mean(layer, either, "float-even")
    assert report.verdict == "agree", report.reason
    assert any("pool sends means at an exact half" in note for note in report.notes)
    for rounding in ("single", "half-even"):
        bad = judged_mean(layer, either, rounding)
        assert (bad.verdict, bad.first_bad_layer) == ("disagree", "pool")


def test_a_mean_cut_off_is_no_half() -> None:
    """Nor is one that is near a half and no more."""
    layer = pool_of("equal")
    for whole, side in ((floor, 2), (ceil, 2), (lambda mean: floor(mean + Fraction(3, 10)), 5)):
        report = judged_mean(layer, whole, "float-even", side)
        assert (report.verdict, report.first_bad_layer) == ("disagree", "pool")
    # Of two pixels nothing lies above a half: halves that all go down are a mean cut off.
    x = rows_of(layer, 2)[:4, :24, :1]
    two = pooled(layer, x, lambda acc, n: floor(ratio(layer) * acc / n), "float-even")
    assert two.verdict == "disagree"


def test_factors_in_float32_in_another_order_are_said() -> None:
    side = quantization(0.018660761415958405, -128)
    layer = replace(pool_of("equal"), input=side, output=side)
    x = rows_of(layer, 6)
    before, after, n = side.scale, side.scale, np.float32(36)

    def whole(acc: int, _: int) -> int:
        real = np.float32(acc) * before * (np.float32(1) / n) * (np.float32(1) / after)
        return int(np.rint(real))

    report = pooled(layer, x, whole, "float-even")
    assert report.verdict == "agree", report.reason
    assert any("averages real numbers by a product" in note for note in report.notes)
