"""Correct rounding of sums computed in float64 (Ziv's strategy).

A float64 sum with error at most e decides its float32 rounding, except when a rounding boundary
lies within e of it: about one value in 2**25. Those few are computed again as exact rationals:
few in trained weights, and all of them in a file that was made so.
Source: A. Ziv, "Fast evaluation of elementary mathematical functions with correctly rounded last
bit", ACM TOMS 17 (1991), section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from math import inf, isqrt, lcm
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array

_ROOT_BITS = 256
_NO_BUFFER, _BUFFERS = 16, (256, 2048)  # numbers: the fewest there are; for conversions
PIECE = 1 << 20  # numbers: of fewer, threads that share an interpreter wait for each other
_MORE = 1 + 2.0**-20  # what a norm of many terms can lose by its own rounding
_UNSEEN = 2.0**-500  # numbers below it are lost in a norm, their squares being too small
_AT_ONCE = 1 << 14  # numbers in exact arithmetic, each of some hundred bytes


class Ratios(NamedTuple):
    """Exact numbers, ``numerators[i] / denominators[i]``, the denominators positive."""

    numerators: list[int]
    denominators: list[int]


# Index arrays, one an axis as from `numpy.nonzero` -> the exact numbers that stand there.
Exact = Callable[[tuple[Array, ...]], Ratios]


def round_once(value: Array, error: Array, dtype: Any, exact: Exact) -> Array:
    """Round `value` to `dtype` as if it had been exact.

    Parameters
    ----------
    value, error : float64 arrays of one shape
        The exact number lies within `error` of `value`.
    dtype : numpy dtype
        float32 or float16; float64 leaves next to nothing decided (`twofold` decides that).
    exact : callable
        Index arrays -> the exact numbers, called for what `value` cannot decide, many at a time.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = (value - error).astype(dtype)
        upper = (value + error).astype(dtype)
    return settled(rounded, upper, exact)


def round_products(x: Array, factor: Array, error: Array, out: Array, exact: Exact) -> None:
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
    low, high = (np.broadcast_to(end, (len(x), *end.shape[1:])) for end in _ends(factor, error))
    per_row = x[:1].size
    buffer = int(np.clip(per_row // 32 * 16, *_BUFFERS))  # half a row, a multiple of 16
    for rows in pieces(len(x), per_row):
        lower, above = out[rows], np.empty_like(out[rows])
        with _buffers_of(buffer), np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for end, into in ((low, lower), (high, above)):
                np.multiply(x[rows], end[rows], out=into, dtype=np.float64, casting="unsafe")
        settled(lower, above, further(exact, rows.start))


def round_sums(
    parts: Sequence[tuple[Array, Array]], error: float, least: float, out: Array, exact: Exact
) -> None:
    """Round ``sum over parts of x * factor`` into `out` as if it had been exact.

    Parameters
    ----------
    parts : sequence of (x, factor)
        Floating arrays (O, C), and the float64 factors (O,) of their rows.
    error, least : float
        The exact sum lies within `error` times the sum of the terms' magnitudes, plus `least`, of
        what float64 makes of it.
    out : array (O, C)
        Its type is the one to round to, as for `round_once`.
    exact
        As for `round_once`.

    One error for a row decides nearly all: that of the norms of its terms, none of which is larger
    and which take one pass. Else that of the terms.
    """
    value, spare = np.empty(out.shape), np.empty(out.shape)
    norm = np.zeros(len(out))
    with _buffers_of(_NO_BUFFER), np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for place, (x, factor) in enumerate(parts):
            term = spare if place else value
            np.copyto(term, x)  # taps of one offset lie apart in their kernel
            term *= factor[:, None]
            norm += np.sqrt(np.einsum("oc,oc->o", term, term))
            if place:
                value += term
        bound = (error * (_MORE * norm + _UNSEEN) + least)[:, None]
        lower = np.subtract(value, bound, out=spare).astype(out.dtype)
        upper = np.add(value, bound, out=spare).astype(out.dtype)
    out[...] = lower
    if np.array_equal(lower, upper):
        return
    where = np.nonzero(lower != upper)
    terms = [x[where] * factor[where[0]] for x, factor in parts]
    own = error * np.abs(terms).sum(axis=0) + least

    def exactly(inside: tuple[Array, ...]) -> Ratios:
        return exact(tuple(axis[inside] for axis in where))

    out[where] = round_once(value[where], own, out.dtype, exactly)


@contextmanager
def _buffers_of(numbers: int) -> Iterator[None]:
    """Of NumPy's ufuncs, which should hold less than two rows.

    A factor a row is one number to their inner loops then; of rows of which two fit in a buffer it
    is written out as often as the row is long, which takes twice as long as the product itself.
    """
    before = np.setbufsize(numbers)
    try:
        yield
    finally:
        np.setbufsize(before)


def pieces(rows: int, per_row: int) -> Iterator[slice]:
    """Some rows at a time."""
    step = max(1, PIECE // max(1, per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def further(exact: Exact, start: int) -> Exact:
    """`exact` for indices that count from the row `start`."""
    return partial(_further, exact, start)


def _ends(factor: Array, error: Array) -> tuple[Array, Array]:
    return factor - error, factor + error


def _further(exact: Exact, start: int, where: tuple[Array, ...]) -> Ratios:
    """The exact numbers at indices that count from the row `start`."""
    return exact((where[0] + start, *where[1:]))


def settled(rounded: Array, upper: Array, exact: Exact) -> Array:
    """`rounded`, with the elements on which the two ends disagree decided exactly."""
    apart = rounded != upper
    if apart.any():
        whole = np.nonzero(apart)
        for start in range(0, len(whole[0]), _AT_ONCE):
            where = tuple(axis[start : start + _AT_ONCE] for axis in whole)
            rounded[where] = nearest_of(exact(where), rounded.dtype)
    return rounded


def sums_of_products(terms: Sequence[tuple[Array, Mapping[int, Fraction]]], row: Array) -> Ratios:
    """``sum over terms of x[i] * t[row[i]]``, exactly.

    Parameters
    ----------
    terms : sequence
        Float arrays x (n,), and rationals t by row.
    row : (n,) integers, those of one row together
    """
    parts = [(*_integers(x), factors) for x, factors in terms]
    numerators, denominators = [], []
    ends = [*np.flatnonzero(np.diff(row)) + 1, len(row)]
    for start, end in zip([0, *ends], ends, strict=False):
        here = [factors[int(row[start])] for *_, factors in parts]
        common = lcm(*(factor.denominator for factor in here))
        low = min((int(e[start:end].min()) for _, e, _ in parts), default=0)
        totals = [0] * (end - start)
        for (n, e, _), factor in zip(parts, here, strict=True):
            whole = factor.numerator * (common // factor.denominator)
            pairs = zip(totals, n[start:end].tolist(), (e[start:end] - low).tolist(), strict=True)
            totals = [total + (number * whole << shift) for total, number, shift in pairs]
        if low > 0:
            totals = [total << low for total in totals]
        numerators += totals
        denominators += [common << max(-low, 0)] * (end - start)
    return Ratios(numerators, denominators)


def _integers(x: Array) -> tuple[Array, Array]:
    """Integers n and e with ``x == n * 2**e``, exactly."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(fraction, 53).astype(np.int64), exponent.astype(np.int64) - 53


def nearest_of(ratios: Ratios, dtype: Any) -> Array:
    """The numbers of type `dtype` nearest to rationals; ties go to the even ones."""
    pairs = list(zip(*ratios, strict=True))
    # Python divides integers with one correct rounding, to float64.
    wide = np.array([_quotient(*pair) for pair in pairs], np.float64)
    with np.errstate(over="ignore", under="ignore"):
        found: Array = wide.astype(dtype)
        if dtype == np.float64:
            return found
        below, above = (np.nextafter(wide, end).astype(dtype) for end in (-np.inf, np.inf))
    # `wide` may have been rounded onto a boundary of `dtype`: its own rounding decides then.
    for i in np.flatnonzero(_midway(below, above) == wide):
        n, d = float(wide[i]).as_integer_ratio()
        side = pairs[i][0] * d - n * pairs[i][1]
        if side:
            found[i] = above[i] if side > 0 else below[i]
    return found


def _midway(below: Array, above: Array) -> Array:
    """The boundaries between neighbours of one type, exactly; NaN where they are the same.

    Where one of them is infinite it stands for the power of two to which it would be rounded.
    """
    most = 2.0 ** np.finfo(below.dtype).maxexp
    low, high = (np.clip(end.astype(np.float64), -most, most) for end in (below, above))
    return np.where(low < high, low / 2 + high / 2, np.nan)


def _quotient(numerator: int, denominator: int) -> float:
    try:
        return numerator / denominator
    except OverflowError:
        return inf if numerator > 0 else -inf


def nearest(exact: Fraction, dtype: Any) -> Any:
    """The number of type `dtype` nearest to a rational; a tie goes to the even one."""
    return nearest_of(Ratios([exact.numerator], [exact.denominator]), dtype)[0]


def root(value: Fraction) -> Fraction:
    """``sqrt(value)`` to 256 bits, and exactly where it is rational."""
    p, q = value.numerator, value.denominator
    if isqrt(p) ** 2 == p and isqrt(q) ** 2 == q:
        return Fraction(isqrt(p), isqrt(q))
    shift = max(0, _ROOT_BITS + q.bit_length() - p.bit_length() // 2)
    return Fraction(isqrt((p * q) << (2 * shift)), q << shift)
