"""Sums rounded once: rows at a time, each by one error first, then by its terms' own."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.exact.rounding import Ratios, nearest, pieces, round_sums

_ERROR, _LEAST = 8 * 2.0**-53, 2.0**-1070


class Sums:
    """Two kernels and their factors, the exact sums, and for which of them these were asked."""

    def __init__(self, seed: int, rows: int = 4, columns: int = 50) -> None:
        rng = np.random.default_rng(seed)
        shape = rows, columns
        self.kernels = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
        self.factors = [rng.normal(size=rows) for _ in range(2)]
        self.asked: list[tuple[int, int]] = []

    def sum(self, row: int, column: int) -> Fraction:
        pairs = zip(self.kernels, self.factors, strict=True)
        products = (Fraction(float(x[row, column])) * Fraction(float(f[row])) for x, f in pairs)
        return sum(products, Fraction(0))

    def exact(self, where: tuple[Array, ...]) -> Ratios:
        here = list(zip(*map(np.ndarray.tolist, where), strict=True))
        self.asked += here
        found = [self.sum(*each) for each in here]
        return Ratios([each.numerator for each in found], [each.denominator for each in found])

    def rounded(self, dtype: Any) -> Array:
        out = np.empty(self.kernels[0].shape, dtype)
        parts = list(zip(self.kernels, self.factors, strict=True))
        round_sums(parts, _ERROR, _LEAST, out, self.exact)
        return out

    def nearest(self, dtype: Any) -> Array:
        rows, columns = self.kernels[0].shape
        found = [[nearest(self.sum(o, c), dtype) for c in range(columns)] for o in range(rows)]
        return np.array(found, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sums_are_the_nearest_numbers(dtype: Any) -> None:
    sums = Sums(0)
    np.testing.assert_array_equal(sums.rounded(dtype), sums.nearest(dtype), strict=True)


def test_one_large_term_in_a_row_does_not_send_the_others_to_exact_arithmetic() -> None:
    """Its error would leave them all undecided; their own do not."""
    sums = Sums(1)
    sums.kernels[0][:, 7] = 1e30
    np.testing.assert_array_equal(sums.rounded(np.float32), sums.nearest(np.float32), strict=True)
    assert sums.asked == []


def test_what_cancels_and_what_lies_between_two_numbers_is_decided_exactly() -> None:
    sums = Sums(2)
    sums.factors = [np.full(4, 1.0), np.full(4, 2.0**-60)]
    sums.kernels[0][0, :] = 1.0
    sums.kernels[1][0, :] = np.float32(2.0**36)  # 1 + 2**-24, a tie
    sums.kernels[1][0, 3] = np.nextafter(np.float32(2.0**36), np.float32(np.inf))
    sums.kernels[0][1, :], sums.factors[0][1] = -1.0, 2.0**-60
    sums.kernels[1][1, :] = np.nextafter(np.float32(1), np.float32(2))
    found = sums.rounded(np.float32)
    np.testing.assert_array_equal(found, sums.nearest(np.float32), strict=True)
    assert found[0, 0] == 1
    assert found[0, 3] > 1
    assert found[1, 0] == np.float32(2.0**-83)
    assert {(0, column) for column in range(50) if column != 3} <= set(sums.asked)


def test_pieces_are_all_rows_once() -> None:
    for rows, width in ((1, 1), (7, 1 << 16), (5, 1 << 20), (0, 3)):
        found = [row for piece in pieces(rows, width) for row in range(rows)[piece]]
        assert found == list(range(rows))
