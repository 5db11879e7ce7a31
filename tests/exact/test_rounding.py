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


def _ties(dtype: Any) -> list[tuple[Fraction, float, float]]:
    """Boundaries between neighbours of both parities, the lower and the upper of them.

    In the middle of the range, among subnormal numbers, at a power of two, at the largest number.
    """
    info = np.finfo(dtype)
    bits = [info.smallest_subnormal * n for n in (1, 2)] + [1.5, np.nextafter(dtype(1.5), dtype(2))]
    found = []
    for low in map(dtype, [*bits, np.nextafter(dtype(1), dtype(0)), info.max]):
        with np.errstate(over="ignore"):
            high = np.nextafter(low, dtype(np.inf))
        beyond = Fraction(2) ** int(info.maxexp) if np.isinf(high) else Fraction(float(high))
        found.append(((Fraction(float(low)) + beyond) / 2, float(low), float(high)))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_lies_within_two_float64_numbers_of_a_tie_goes_to_its_own_side(
    dtype: Any, sign: int
) -> None:
    """A number 0.5 to 1 float64 spacings beside a tie is no tie although its neighbour is one."""
    for tie, low, high in _ties(dtype):
        spacing = Fraction(float(np.spacing(float(tie))))
        for eighths in [n for n in range(-24, 25) if n]:
            exact = tie + spacing * eighths / 8
            right = low if eighths < 0 else high
            assert nearest(sign * exact, dtype) == dtype(sign * right), (tie, eighths)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tie_goes_to_the_even_neighbour(dtype: Any) -> None:
    integers = {np.float32: np.uint32, np.float16: np.uint16}[dtype]
    for tie, low, high in _ties(dtype):
        even = high if int(dtype(low).view(integers)) % 2 else low
        assert nearest(tie, dtype) == dtype(even)
