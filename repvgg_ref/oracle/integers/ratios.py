"""Which factors a chain's channels can have, exactly: bounds of ratios, and shortest paths.

A tap of s real steps between channel i and channel o became q: ``|q - s c_o / c_i| <= 1/2``, and a
bias says the same of c_o alone. In logarithms these are bounds of differences of two unknowns, and
whether all can be met is decided by shortest paths (Bellman and Ford; Cormen et al., Introduction
to Algorithms, section 24.4). So factors near 1 are found, too, which a layer by itself does not
tell from none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.factors import HALF, Pair, bias_room
from repvgg_ref.oracle.integers.settings import clips_at_zero

_ROOM = HALF * (1 - 1e-9)  # that solutions at its very end are none of the judge's alarms
_WIDEST = 30.0  # logarithms of factors: no scale in float32 leaves room for more
_SAME = 1e-13  # of a logarithm: what no further sweep changes
_SWEEPS = 200


class Bounds(NamedTuple):
    """What a layer's integers allow, in logarithms.

    `low` and `high` (G, O/G, C/G) hold c_o / c_i, `own_low` and `own_high` (O,) c_o itself.
    """

    low: Array
    high: Array
    own_low: Array
    own_high: Array

    @classmethod
    def of(cls, pair: Pair, *, last: bool) -> Bounds:
        """Those of a layer; factors that no ReLU lets through, and the logits', are 1."""
        assert pair.layer.weight is not None
        number, steps = pair.layer.weight.astype(np.float64), pair.steps
        least, most = pair.ends
        # What was clipped may have been any larger.
        start = np.where(number <= least, -np.inf, number - _ROOM)
        stop = np.where(number >= most, np.inf, number + _ROOM)
        groups, per_group = pair.layer.groups, steps.shape[1]
        shape = (groups, -1, per_group, steps[0, 0].size)
        low, high = (each.reshape(shape) for each in _ratios(steps, start, stop))
        if last or not clips_at_zero(pair.layer):
            own_low = own_high = np.zeros(len(steps))
        else:
            half = _ROOM * bias_room(pair.held_bias / pair.bias_step) * pair.bias_step
            ends = (pair.held_bias - half, pair.held_bias + half)
            own_low, own_high = _ratios(pair.bias_steps, *ends)
        return cls(low.max(axis=3), high.min(axis=3), own_low, own_high)

    @property
    def fixed(self) -> Array:
        """Channels whose factor must be 1, (O,) bool."""
        found: Array = (self.own_low == 0) & (self.own_high == 0)
        return found

    def of_rows(self, rows: Array) -> Bounds:
        """What these output channels say, (O,) bool; factors that must be 1 are."""
        return self.of_weights(rows).of_biases(rows | self.fixed)

    def of_weights(self, rows: Array) -> Bounds:
        """What the weights of `rows` say, and all biases."""
        there = rows.reshape(*self.low.shape[:2], 1)
        low, high = np.where(there, self.low, -np.inf), np.where(there, self.high, np.inf)
        return self._replace(low=low, high=high)

    def of_biases(self, rows: Array) -> Bounds:
        """Those of all weights, and of the biases of `rows` alone."""
        low = np.where(rows, self.own_low, -np.inf)
        return self._replace(own_low=low, own_high=np.where(rows, self.own_high, np.inf))

    def between(self, rows: Array, *, with_biases: bool) -> Bounds:
        """A step behind the layer: the factors of all but `rows` go on as they are.

        `with_biases`: what its biases say is said of the factors behind it.
        """
        free = np.where(rows, np.inf, 0.0)[:, None, None]
        after = self._replace(low=-free, high=free)
        return after.of_biases(self.fixed | with_biases)

    @property
    def open(self) -> Bounds:
        """What no channel says."""
        return self.of_rows(np.zeros(len(self.own_low), bool))

    @property
    def possible(self) -> bool:
        """Whether every pair of channels can have a ratio."""
        inside = (self.low <= self.high).all() and (self.own_low <= self.own_high).all()
        return bool(inside)


def _ratios(real: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    """Logarithms between which c is, where `start` <= `real` * c <= `stop`."""
    size = np.abs(real)
    start, stop = np.where(real < 0, -stop, start), np.where(real < 0, -start, stop)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (np.log(np.maximum(end, 0) / size) for end in (start, stop))
    low, high = np.where(size == 0, -np.inf, low), np.where(size == 0, np.inf, high)
    impossible = (stop < 0) | ((size == 0) & (start > 0))
    return np.where(impossible, np.inf, low), np.where(impossible, -np.inf, high)


class Ends(NamedTuple):
    """Logarithms between which the factors of a layer's outputs can lie, (O,) each."""

    low: Array
    high: Array


def met(bounds: Sequence[Bounds]) -> tuple[Ends, ...] | None:
    """The least and the largest factors within all bounds; None if there are none.

    What lies midway meets all bounds, too: these are linear, and both ends meet them.
    """
    if not all(each.possible for each in bounds):
        return None
    inputs = bounds[0].low.shape[0] * bounds[0].low.shape[2]
    low = [np.zeros(inputs), *(np.maximum(each.own_low, -_WIDEST) for each in bounds)]
    high = [np.zeros(inputs), *(np.minimum(each.own_high, _WIDEST) for each in bounds)]
    for _ in range(_SWEEPS):
        before = [each.copy() for each in (*low, *high)]
        for place, bound in enumerate(bounds):
            _forward(bound, low, high, place)
        for place, bound in reversed(list(enumerate(bounds))):
            _backward(bound, low, high, place)
        if any((one > other + _SAME).any() for one, other in zip(low, high, strict=True)):
            return None
        moved = zip(before, (*low, *high), strict=True)
        if all(np.abs(one - other).max(initial=0) <= _SAME for one, other in moved):
            return tuple(Ends(*ends) for ends in zip(low[1:], high[1:], strict=True))
    return None


def _forward(bound: Bounds, low: list[Array], high: list[Array], place: int) -> None:
    """What the outputs' factors can be, by the inputs'."""
    shape = (bound.low.shape[0], 1, bound.low.shape[2])
    least = (low[place].reshape(shape) + bound.low).max(axis=2).reshape(-1)
    most = (high[place].reshape(shape) + bound.high).min(axis=2).reshape(-1)
    low[place + 1] = np.maximum(low[place + 1], least)
    high[place + 1] = np.minimum(high[place + 1], most)


def _backward(bound: Bounds, low: list[Array], high: list[Array], place: int) -> None:
    """What the inputs' factors can be, by the outputs'."""
    shape = (*bound.low.shape[:2], 1)
    least = (low[place + 1].reshape(shape) - bound.high).max(axis=1).reshape(-1)
    most = (high[place + 1].reshape(shape) - bound.low).min(axis=1).reshape(-1)
    low[place] = np.maximum(low[place], least)
    high[place] = np.minimum(high[place], most)
