"""Which channel of ours each channel of theirs is, and by which factor it is scaled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array

_MOST = 0.8  # of the moved channels must be explained; nearly dead ones may not be
_LEFT = 1e-3  # share of a moved channel's energy that the one it is taken for may not explain


class Change(NamedTuple):
    """Channel c holds channel ``order[c]`` of ours times ``factor[c]``."""

    order: Array
    factor: Array

    @classmethod
    def nothing(cls, channels: int) -> Change:
        """No channel moved or scaled."""
        return cls(np.arange(channels), np.ones(channels))

    @property
    def moved(self) -> Array:
        """Which channels stand elsewhere."""
        return np.flatnonzero(self.order != np.arange(len(self.order)))

    @property
    def is_scaled(self) -> bool:
        """Whether any factor is not 1."""
        return bool((self.factor != 1).any())

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves everything as it is."""
        return not len(self.moved) and not self.is_scaled

    def left(self, ours: Array, theirs: Array) -> Array:
        """The share of the energy of each row of `theirs` that is not ours, moved and scaled."""
        energy = _energy(theirs)
        rest = _energy(theirs - self.factor[:, None] * ours[self.order])
        with np.errstate(over="ignore"):  # of a nearly dead channel
            return np.where(energy > 0, rest / np.where(energy > 0, energy, 1), rest > 0)

    def undone(self, theirs: Array, axis: int, power: int = -1) -> Array:
        """`theirs` in our order along `axis`, times ``factor ** power``; the dtype stays."""
        back = np.argsort(self.order)
        found = np.take(theirs, back, axis)
        if not self.is_scaled:
            return found
        shape = [1] * found.ndim
        shape[axis] = -1
        wide = found.astype(np.float64) * (self.factor[back] ** power).reshape(shape)
        return np.asarray(wide)


def matched(ours: Array, theirs: Array, room: float) -> tuple[Change, Array]:
    """The order and factors that take rows of `ours`, (O, K), to those of `theirs`.

    A channel that is its own for all that can be told, within `room` relative to its largest value,
    stays where it is with a factor of 1. One of theirs that holds NaN or infinity takes the place
    that the others leave it, and nothing explains it.

    Returns
    -------
    Change
    left : array (O,)
        Of each row of theirs, the share of its energy that the change does not explain.
    """
    change = Change.nothing(len(ours))
    told = np.isfinite(_energy(theirs))
    theirs = np.where(told[:, None], theirs, 0)
    size = np.sqrt(_energy(ours)), np.sqrt(_energy(theirs))
    same = np.abs(theirs - ours).max(axis=1) <= room * np.abs(ours).max(axis=1)
    same &= told  # else a channel of zeros, which any lost one is taken for here
    if same.all():
        return change, np.zeros(len(ours))
    cosine = _unit(theirs, size[1]) @ _unit(ours, size[0]).T  # (theirs, ours)
    own = np.arange(len(ours))
    cosine[own, own] += 1e-9  # of two equal ones a channel is its own
    cosine[same] = -1
    cosine[:, same] = -1
    cosine[same, same] = 2
    order = cosine.argmax(axis=1)
    if len(np.unique(order)) < len(order):  # channels that are always off look alike
        order = scipy.optimize.linear_sum_assignment(cosine, maximize=True)[1]
    change = Change(order, _factors(ours[order], theirs, room))
    left = change.left(ours, theirs)
    explained = left[change.moved] <= _LEFT
    if len(explained) and explained.mean() < _MOST:  # none of ours: something else is wrong
        change = Change(own, _factors(ours, theirs, room))
        left = change.left(ours, theirs)
    return change, np.where(told, left, 1.0)


def _energy(rows: Array) -> Array:
    """Of each row; infinite where its squares leave float64, NaN where it holds NaN."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray((rows**2).sum(axis=1))


def _unit(rows: Array, size: Array) -> Array:
    return rows / np.maximum(size, 1e-300)[:, None]


def _factors(ours: Array, theirs: Array, room: float) -> Array:
    """By what each row is scaled: 1 where that explains it, or where no factor does."""
    power = (ours**2).sum(axis=1)
    found = (ours * theirs).sum(axis=1) / np.where(power > 0, power, 1)
    largest = np.abs(ours).max(axis=1)
    as_it_is = np.abs(theirs - ours).max(axis=1) <= room * largest
    rest = np.abs(theirs - found[:, None] * ours).max(axis=1)
    explained = (found > 0) & (rest <= 8 * room * np.abs(found) * largest)
    return np.where(as_it_is | ~explained, 1.0, found)
