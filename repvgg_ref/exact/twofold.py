"""Sums of products in twice float64's precision, rounded correctly to float64.

A number is held as the sum of two float64 numbers, high + low. The error of a float64 product or
sum is itself a float64 number, which elementary operations find: T. J. Dekker, "A floating-point
technique for extending the available precision", Numerische Mathematik 18 (1971), for products; D.
E. Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B, for sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.exact.rounding import Exact, settled

_SPLITTER = 2.0**27 + 1
# Above it no error term of a product of this size is lost among the subnormal numbers.
_SAFE = 2.0**-900


class Twofold(NamedTuple):
    """``high + low`` with ``|low| <= 2**-53 |high|``, each number within 2**-106 of itself."""

    high: Array
    low: Array


def twofold(values: Iterable[Fraction]) -> Twofold:
    """Rationals in two float64 numbers each; NaN for what is too large or too small for it."""
    pairs = [_pair(value) for value in values]
    return Twofold(*np.array(pairs, np.float64).reshape(-1, 2).T)


def round_sum(products: list[tuple[Array, Twofold]], shape: tuple[int, ...], exact: Exact) -> Array:
    """The sum of ``x[o, c] * t[o]`` over the pairs (x, t), rounded correctly to float64.

    With n products of magnitudes that add up to S, high + low errs by less than
    ``(n + 2)**2 * 2**-104 * S``: each product by 2**-104 of itself, and each of the 2 n additions
    to `low` by 2**-53 of ``(n + 2) * 2**-53 * S``.

    Parameters
    ----------
    products : list
        Float arrays x (O, C), and the rationals t (O,) as `twofold` holds them.
    shape : (O, C)
        Of the sum, which without products is zero.
    exact : callable
        Index arrays -> the exact sums, called where twice the precision cannot decide.
    """
    high = low = size = np.zeros(shape)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # decided exactly
        for x, t in products:
            product, rest = _product(x.astype(np.float64), t)
            size = size + np.abs(product)
            lost = (np.abs(product) < _SAFE) & (x != 0) & (t.high != 0)[:, None]
            high, error = _sum(high, product)
            low = low + error + np.where(lost, np.nan, rest)
        error = (len(products) + 2) ** 2 * 2.0**-104 * size
        return settled(high + (low - error), high + (low + error), exact)


def _pair(value: Fraction) -> tuple[float, float]:
    try:
        high = float(value)
    except OverflowError:
        return np.nan, np.nan
    if value and abs(high) < _SAFE:
        return np.nan, np.nan
    return high, float(value - Fraction(high))


def _product(x: Array, t: Twofold) -> tuple[Array, Array]:
    """``x[o, c] * t[o]`` in float64, and the rest of it."""
    y = t.high[:, None]
    product = x * y
    x_head, y_head = _head(x), _head(y)
    x_tail, y_tail = x - x_head, y - y_head
    error = ((x_head * y_head - product) + x_head * y_tail + x_tail * y_head) + x_tail * y_tail
    return product, error + x * t.low[:, None]


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` in float64, and its error."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _head(x: Array) -> Array:
    """The upper half of the bits: products of halves are exact."""
    large = _SPLITTER * x
    head: Array = large - (large - x)
    return head
