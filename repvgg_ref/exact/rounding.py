"""Correct rounding of sums computed in float64 (Ziv's strategy).

A float64 sum with error at most e decides its float32 rounding, except when a rounding boundary
lies within e of it: about one value in 2**25. Those few are computed again as exact rationals.
Source: A. Ziv, "Fast evaluation of elementary mathematical functions with correctly rounded last
bit", ACM TOMS 17 (1991), section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array

_ROOT_BITS = 256


def round_once(
    value: Array, error: Array, dtype: Any, exact: Callable[[tuple[int, ...]], Fraction]
) -> Array:
    """Round `value` to `dtype` as if it had been exact.

    Parameters
    ----------
    value, error : float64 arrays of one shape
        The exact number lies within `error` of `value`.
    dtype : numpy dtype
        float32 or float16; float64 leaves next to nothing decided (`twofold` decides that).
    exact : callable
        Index -> the exact number, called only where `value` cannot decide.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = (value - error).astype(dtype)
        upper = (value + error).astype(dtype)
    return settled(rounded, upper, exact)


def round_products(
    x: Array,
    factor: Array,
    error: Array,
    out: Array,
    exact: Callable[[tuple[int, ...]], Fraction],
) -> None:
    """Round ``x * factor`` into `out` as if it had been exact, with no float64 array in between.

    Parameters
    ----------
    x : floating array
    factor, error : float64 arrays that broadcast to the shape of `x`
        The exact factor lies within `error` of `factor`, the rounding of the product included.
    out : array of the shape of `x`
        Its type is the one to round to, as for `round_once`.
    exact
        As for `round_once`.
    """
    upper = np.empty(x.shape, out.dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for end, into in ((factor - error, out), (factor + error, upper)):
            np.multiply(x, end, out=into, dtype=np.float64, casting="unsafe")
    settled(out, upper, exact)


def settled(rounded: Array, upper: Array, exact: Callable[[tuple[int, ...]], Fraction]) -> Array:
    """`rounded`, with the elements on which the two ends disagree decided exactly."""
    for position in np.flatnonzero(rounded != upper):
        where = tuple(int(i) for i in np.unravel_index(position, rounded.shape))
        rounded[where] = nearest(exact(where), rounded.dtype)
    return rounded


def nearest(exact: Fraction, dtype: Any) -> Any:
    """The number of type `dtype` nearest to a rational; a tie goes to the even one."""
    number, largest = np.dtype(dtype).type, np.finfo(dtype).max
    step = Fraction(float(largest)) - Fraction(float(np.nextafter(largest, number(0))))
    if abs(exact) >= Fraction(float(largest)) + step / 2:
        return number(np.copysign(np.inf, exact.numerator))
    with np.errstate(over="ignore", under="ignore"):
        guess = number(float(exact))
        neighbours = [np.nextafter(guess, number(s * np.inf)) for s in (-1, 1)]
    candidates = [c for c in (guess, *neighbours) if np.isfinite(c)]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), _is_odd(c)))


def root(value: Fraction) -> Fraction:
    """``sqrt(value)`` to 256 bits, and exactly where it is rational."""
    p, q = value.numerator, value.denominator
    if isqrt(p) ** 2 == p and isqrt(q) ** 2 == q:
        return Fraction(isqrt(p), isqrt(q))
    shift = max(0, _ROOT_BITS + q.bit_length() - p.bit_length() // 2)
    return Fraction(isqrt((p * q) << (2 * shift)), q << shift)


def _is_odd(value: Any) -> bool:
    """Whether the last mantissa bit is set."""
    return bool(value.view(f"u{value.itemsize}") & 1)
