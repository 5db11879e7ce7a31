"""What the errors of one output say together: two tests, exactness on integers, regularity.

The two tests are those of Arm's TOSA verifier (TOSA specification, "Floating-point rounding
error"): with errors in units of the largest single rounding of each of T outputs, K roundings each,

    |sum of errors| <= 2 sqrt(K T),      sum of squares <= 0.4 K T.

Derivation. A rounding to nearest errs by at most its unit, uniformly: mean square 1/3; K
independent ones add up to K/3, and 0.4 leaves a fifth for what is not quite so. The sum over T
outputs then has a standard deviation of at most sqrt(K T / 3), of which 2 sqrt(K T) is 3.5. Here
an output's unit holds its K already (`Approx.unit`), and what is written to memory, so K is 1.
Units count magnitudes where roundings are of partial sums, so right ports use a small part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array

_BIAS, _VARIANCE = 2.0, 0.4
_FEWEST = 100  # outputs that the tests need to speak of averages
_ONE_SIDED = 0.6  # sums that cancel turn some of them round
_REGULAR = 0.9  # of an output's error energy, in one cause


class Tests(NamedTuple):
    """Both statistics as shares of what is allowed (above 1 fails); `outputs` is T."""

    bias: float
    variance: float
    outputs: int
    fewest: int = _FEWEST

    @property
    def is_passed(self) -> bool:
        """Whether neither speaks against rounding; too few outputs say nothing."""
        return self.outputs < self.fewest or (self.bias <= 1 and self.variance <= 1)


def two_tests(error: Array, unit: Array, *, fewest: int = _FEWEST) -> Tests:
    """Bias and variance of the errors where a rounding is possible at all."""
    use = (unit > 0) & np.isfinite(error)
    e = error[use] / unit[use]
    count = e.size
    if count == 0:
        return Tests(0.0, 0.0, 0)
    bias = abs(float(e.sum())) / (_BIAS * np.sqrt(count))
    return Tests(float(bias), float((e**2).sum() / (_VARIANCE * count)), count, fewest)


def rounding_direction(error: Array, value: Array) -> str:
    """Where most errors go, "down", "up" or "toward zero"; empty if nowhere."""
    wrong = (error != 0) & (value != 0)
    if wrong.sum() < _FEWEST:
        return ""
    e, v = error[wrong], value[wrong]
    for words, share in {
        "down": (e < 0).mean(),
        "up": (e > 0).mean(),
        "toward zero": (e * v < 0).mean(),
    }.items():
        if share > _ONE_SIDED:
            return words
    return ""


@dataclass(frozen=True)
class Regularity:
    """A cause that explains nearly all of an error that is too small to be named otherwise."""

    bug: str
    says: str
    estimate: float
    explains: float


def regularity(error: Array, value: Array, axis: int, allowed: Array) -> Regularity | None:
    """A factor, a constant, or a place that nearly all of `error` goes with; None for rounding.

    Parameters
    ----------
    error, value : arrays of one shape
        What a port gave minus the right output, and that.
    axis : int
        The output channels'.
    allowed : array
        What rounding may do to each output; where it may do nothing, any error counts.
    """
    rows = np.moveaxis(error, axis, 0).reshape(error.shape[axis], -1)  # (O, others)
    right = np.moveaxis(value, axis, 0).reshape(rows.shape)
    energy = float((rows**2).sum())
    if energy == 0 or not np.isfinite(energy):
        return None
    for found in (_factor(rows, right, energy), _constant(rows, energy)):
        if found is not None:
            return found
    return _place(error, axis, allowed)


def _factor(rows: Array, right: Array, energy: float) -> Regularity | None:
    """Outputs times 1 + c; c for all, or for each channel."""
    power = float((right**2).sum())
    if power == 0 or rows.size < 8:
        return None
    c = float((rows * right).sum()) / power
    explains = c**2 * power / energy
    if explains > _REGULAR:
        return Regularity("outputs-scaled", f"outputs are {1 + c:.9g} times right", 1 + c, explains)
    if rows.shape[1] < 8:
        return None
    each = (rows * right).sum(axis=1) / np.maximum((right**2).sum(axis=1), 1e-300)
    explains = float((each**2 * (right**2).sum(axis=1)).sum()) / energy
    if explains > _REGULAR:
        worst = int(np.argmax(np.abs(each)))
        says = f"channels have factors of their own, channel {worst} {1 + each[worst]:.9g}"
        return Regularity("channels-scaled", says, float(1 + each[worst]), explains)
    return None


def _constant(rows: Array, energy: float) -> Regularity | None:
    """A constant for each channel."""
    if rows.shape[1] < 8:
        return None
    each = rows.mean(axis=1)
    explains = float((each**2).sum()) * rows.shape[1] / energy
    if explains <= _REGULAR:
        return None
    worst = int(np.argmax(np.abs(each)))
    says = f"a constant is added to each channel, {each[worst]:.3g} to channel {worst}"
    return Regularity("constant-added", says, float(each[worst]), explains)


def _place(error: Array, axis: int, allowed: Array) -> Regularity | None:
    """Errors in one channel, image, row or column alone, the others being as exact as can be."""
    wrong = np.abs(error) > allowed
    if not wrong.any() or wrong.all():
        return None
    names = {0: "image", axis: "channel"}
    if error.ndim == 4 and axis == 1:
        names |= {2: "row", 3: "column"}
    for along, name in names.items():
        others = tuple(a for a in range(error.ndim) if a != along)
        bad = np.flatnonzero(wrong.any(axis=others))
        if error.shape[along] > 2 and len(bad) == 1:
            share = float((error**2)[wrong].sum() / (error**2).sum())
            says = f"only {name} {bad[0]} of {error.shape[along]} is wrong"
            return Regularity("one-place-wrong", says, float(bad[0]), share)
    if wrong.mean() < 0.02 and error.size >= _FEWEST:
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        says = f"{int(wrong.sum())} of {wrong.size} outputs are wrong, the first at {at}"
        return Regularity("few-outputs-wrong", says, float(wrong.sum()), 1.0)
    return None


def taps_wrong(rows: Array, columns: Array) -> Regularity | None:
    """Errors that are linear in what the taps see: wrong weights.

    Parameters
    ----------
    rows : (O, P) array
        The errors of each output channel.
    columns : (G, K, P) array
        What the taps of a group meet, P more than twice K.
    """
    groups, taps, outputs = columns.shape
    if outputs < 2 * taps or not (rows**2).sum() > 0:
        return None
    split = rows.reshape(groups, -1, outputs)
    left, largest, where = 0.0, 0.0, (0, 0)
    for g in range(groups):
        solution = np.linalg.lstsq(columns[g].T, split[g].T, rcond=None)[0]  # (K, O/G)
        rest = split[g].T - columns[g].T @ solution
        left += float((rest**2).sum()) * outputs / (outputs - taps)
        at = np.unravel_index(np.argmax(np.abs(solution)), solution.shape)
        if abs(solution[at]) > abs(largest):
            largest = float(solution[at])
            where = (g * split.shape[1] + int(at[1]), int(at[0]))
    explains = 1 - left / float((rows**2).sum())
    if explains < _REGULAR:
        return None
    says = (
        f"the errors go with the weights: tap {where[1]} of output channel {where[0]} is off by"
        f" {largest:.3g}, the largest"
    )
    return Regularity("weights-altered", says, largest, explains)
