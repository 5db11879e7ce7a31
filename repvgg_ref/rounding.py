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
        float32 or float16; float64 is returned as computed.
    exact : callable
        Index -> the exact number, called only where `value` cannot decide.
    """
    if np.dtype(dtype) == np.float64:
        return value
    with np.errstate(over="ignore", under="ignore"):
        rounded = (value - error).astype(dtype)
        upper = (value + error).astype(dtype)
    for index in zip(*np.nonzero(rounded != upper), strict=True):
        where = tuple(int(i) for i in index)
        rounded[where] = nearest(exact(where), dtype)
    return rounded


def nearest(exact: Fraction, dtype: Any) -> Any:
    """The number of type `dtype` nearest to a rational; a tie goes to the even one."""
    with np.errstate(over="ignore", under="ignore"):
        guess = np.dtype(dtype).type(float(exact))
        if not np.isfinite(guess):
            return guess
        neighbours = [np.nextafter(guess, np.dtype(dtype).type(s * np.inf)) for s in (-1, 1)]
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
