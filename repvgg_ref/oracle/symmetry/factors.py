"""By what channels are scaled: rows of one layer, columns of the next, and whether these agree.

All factors are medians, weighted by the reference's numbers: the q that minimises
``sum |theirs - q ours|``. A wrong tap moves none of them. A factor is taken as compensated where
the columns show it, however near to 1 it is: rows alone cannot tell it from a wrong scale.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array

_ROUNDS, _SQUARES = 24, 8  # of rows and columns, in turn; the first by least squares
_MOST = 1024  # numbers that a factor is the median of
_OUTPUTS = 256  # of a group, that tell its inputs' factors
_SURE = 4.0  # standard errors of a factor that is not 1
_LEAST = 0.5  # roundings: below it nothing is a factor
_NEARER = 0.5  # of a column's factor may be left beside its row's
_SPREAD = 1.2533 / 0.6745  # of a median, from the median deviation of what it is taken of
_ROUNDED = 0.6  # roundings: the least that numbers scatter, for few of them may hide it


def factor_of(ours: Array, theirs: Array, unit: float) -> tuple[Array, Array]:
    """By what each row of theirs, (R, K), is scaled, and its standard error; 1 for empty rows."""
    step = max(1, ours.shape[1] // _MOST)
    ours, theirs = ours[:, ::step], theirs[:, ::step]
    weight = np.abs(ours)
    ratio = theirs / np.where(weight > 0, ours, 1.0)
    middle = _median(ratio, weight)
    spread = _median(np.abs(ratio - middle[:, None]), weight)
    known = np.isfinite(middle) & (middle > 0)
    # numbers that matter, where one may outweigh all others
    count = weight.sum(axis=1) ** 2 / np.maximum((weight**2).sum(axis=1), 1e-300)
    error = np.maximum(_SPREAD * spread, _ROUNDED * unit) / np.sqrt(np.maximum(count, 1.0))
    return np.where(known, middle, 1.0), np.where(known, error, np.inf)


def _median(values: Array, weight: Array) -> Array:
    """The weighted median of each row; NaN where all weights are 0."""
    order = np.argsort(values, axis=1)
    share = np.cumsum(np.take_along_axis(weight, order, 1), axis=1)
    at = (share >= 0.5 * share[:, -1:]).argmax(axis=1)
    middle = values[np.arange(len(values)), order[np.arange(len(values)), at]]
    return np.asarray(np.where(share[:, -1] > 0, middle, np.nan))


def columns_of(
    ours: Array, theirs: Array, biases: tuple[Array, Array] | None, groups: int, unit: float
) -> tuple[Array, Array]:
    """By what the inputs of a kernel (O, C/G, ...) are scaled, whatever its rows are scaled by.

    Parameters
    ----------
    biases : pair of arrays (O,) or None
        Ours and theirs: a factor that all inputs share is not the rows' where no bias has it. None
        for a layer whose rows nothing scales.

    Returns
    -------
    factor, error : arrays (C,)
        Their standard errors, as numbers scatter.
    """
    mine, other = (np.split(_flat(w), groups) for w in (ours, theirs))
    pairs = [None] * groups if biases is None else _pairs(biases, groups)
    found = [_of_group(a, b, pair, unit) for a, b, pair in zip(mine, other, pairs, strict=True)]
    factor, error = (np.concatenate(each) for each in zip(*found, strict=True))
    return factor, error


def _flat(weight: Array) -> Array:
    return np.asarray(weight, np.float64).reshape(*weight.shape[:2], -1)


def _pairs(biases: tuple[Array, Array], groups: int) -> list[tuple[Array, Array]]:
    ours, theirs = (np.split(np.asarray(b, np.float64), groups) for b in biases)
    return list(zip(ours, theirs, strict=True))


def _of_group(
    ours: Array, theirs: Array, biases: tuple[Array, Array] | None, unit: float
) -> tuple[Array, Array]:
    """The same of one group, (O, C, taps)."""
    step = max(1, len(ours) // _OUTPUTS)
    rows = np.ones(len(ours[::step])) if biases is None else _rows(ours[::step], theirs[::step])
    even = theirs[::step] / rows[:, None, None]
    columns, error = factor_of(_by_input(ours[::step]), _by_input(even), unit)
    if biases is None or not biases[0].any():
        return columns, error
    shared, of_shared = factor_of(biases[0][None, ::step], (biases[1][::step] / rows)[None], unit)
    middle = float(np.median(columns))
    if abs(middle - shared[0]) < _SURE * max(of_shared[0], unit / _SURE):
        shared[0] = middle  # biases do not tell it from 1
    return columns / shared, np.hypot(error, of_shared)


def _rows(ours: Array, theirs: Array) -> Array:
    """By what rows are scaled, up to one factor, with inputs that are scaled as well.

    Logarithms of ratios are sums of a row's and an input's: what is minimised is convex. First
    squares, then magnitudes, as least squares whose weights are over what was left.
    """
    known = (ours != 0) & (theirs * ours > 0)
    ratio = np.log(np.where(known, theirs / np.where(known, ours, 1.0), 1.0))
    sizes = np.abs(ours) / np.maximum(np.abs(ours).max(axis=(1, 2), keepdims=True), 1e-300)
    sizes = np.where(known, sizes, 0.0)
    weight = sizes**2
    rows, columns = np.zeros((len(ours), 1, 1)), np.zeros((1, ours.shape[1], 1))
    for count in range(_ROUNDS):
        columns = _mean(ratio - rows, weight, (0, 2))
        rows = _mean(ratio - columns, weight, (1, 2))
        if count >= _SQUARES:
            off = np.abs(ratio - rows - columns)
            least = float(np.median(off[known])) if known.any() else 0.0
            weight = sizes / np.maximum(off, max(least, 1e-17))
    return np.asarray(np.exp(rows[:, 0, 0]))


def _mean(values: Array, weight: Array, axes: tuple[int, int]) -> Array:
    total = weight.sum(axis=axes, keepdims=True)
    mean = (weight * values).sum(axis=axes, keepdims=True) / np.where(total > 0, total, 1.0)
    return np.asarray(mean)


def _by_input(weight: Array) -> Array:
    return weight.transpose(1, 0, 2).reshape(weight.shape[1], -1)  # (C, O * taps)


def compensated(rows: Array, columns: Array, error: Array, unit: float, slack: float) -> Array:
    """The factor of each channel that the next layer takes back; 1 where it takes none.

    Parameters
    ----------
    rows, columns : arrays (C,)
        By what a layer's outputs are scaled, and the next one's inputs.
    error : array (C,)
        Standard errors of `columns`.
    unit : float
        Unit roundoff of the numbers.
    slack : float
        Roundings by which a right row's own scale may be off.
    """
    of_columns, both = np.log(columns), np.log(rows) + np.log(columns)
    shown = np.abs(of_columns) > np.maximum(_SURE * error, _LEAST * unit)
    taken = shown & (np.abs(both) < _NEARER * np.abs(of_columns))
    if 2 * taken.sum() > shown.sum():  # rounding may hide the row's part of a factor near 1
        taken |= shown & (np.abs(both) <= slack * unit)
    return np.where(taken, 1 / columns, 1.0)
