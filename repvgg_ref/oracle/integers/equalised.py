"""The factors of all channels of a chain at once, exactly: what single layers cannot tell.

A tap of s real steps between channel i and channel o became q: ``|q - s c_o / c_i| <= 1/2``, and a
bias says the same of c_o alone. In logarithms these are bounds of differences of two unknowns, and
whether all can be met is decided by shortest paths (Bellman and Ford; Cormen et al., Introduction
to Algorithms, section 24.4). So factors near 1 are found, too, which a layer by itself does not
tell from none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair, bias_room
from repvgg_ref.oracle.integers.settings import clips_at_zero

_ROOM = HALF * (1 - 1e-9)  # that solutions at its very end are none of the judge's alarms
_WIDEST = 30.0  # logarithms of factors: no scale in float32 leaves room for more
_SAME = 1e-13  # of a logarithm: what no further sweep changes
_SWEEPS = 200


class _Bounds(NamedTuple):
    """What a layer's integers allow, in logarithms.

    `low` and `high` (G, O/G, C/G) hold c_o / c_i, `own_low` and `own_high` (O,) c_o itself.
    """

    low: Array
    high: Array
    own_low: Array
    own_high: Array

    @classmethod
    def of(cls, pair: Pair, *, last: bool) -> _Bounds:
        """Those of a layer; factors that no ReLU lets through, and the logits', are 1."""
        assert pair.layer.weight is not None
        number, steps = pair.layer.weight.astype(np.float64), pair.steps
        least, most = pair.layer.weight_ends
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
    def open(self) -> _Bounds:
        """Without what the weights and the bias say; factors that must be 1 are."""
        fixed = bool((self.own_low == 0).all() and (self.own_high == 0).all())
        own = np.zeros_like(self.own_low) if fixed else np.full_like(self.own_low, np.inf)
        return _Bounds(np.full_like(self.low, -np.inf), np.full_like(self.high, np.inf), -own, own)

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


class Solved(NamedTuple):
    """Factors of every layer, and the layer whose integers had to be left out, if one had to."""

    factors: tuple[Factors, ...]
    without: int | None = None


def solved(pairs: Sequence[Pair]) -> Solved | None:
    """The factors with which all integers are the nearest ones, or all but one layer's.

    `pairs` are the layers of a chain in their own order, not scaled. None if wrong integers stand
    in more than one layer.
    """
    last = len(pairs) - 1
    bounds = [_Bounds.of(pair, last=place == last) for place, pair in enumerate(pairs)]
    if (found := _met(bounds)) is not None:
        return Solved(found)
    for place in _culprits(bounds):
        left_out = [*bounds[:place], bounds[place].open, *bounds[place + 1 :]]
        if (found := _met(left_out)) is not None:
            return Solved(found, place)
    return None


def is_shown(pairs: Sequence[Pair], without: int | None) -> bool:
    """Whether a channel shows its factor on both sides: in its own row, and where it is read.

    A number that is off by a step or two may be what some factor would have made it, too; but then
    nothing in the next layer asks for that factor.
    """
    wrong = [np.abs(pair.layer.weight - pair.held(pair.steps)) > HALF for pair in pairs]
    for place, (pair, following) in enumerate(pairwise(pairs)):
        if without in (place, place + 1):
            continue
        rows = wrong[place].reshape(len(pair.weight), -1).any(axis=1) | (pair.bias_apart > HALF)
        groups, per_group = following.layer.groups, following.weight.shape[1]
        read = wrong[place + 1].reshape(groups, -1, per_group, following.weight[0, 0].size)
        if (rows & read.any(axis=(1, 3)).reshape(-1)).any():
            return True
    return False


def _culprits(bounds: list[_Bounds]) -> range:
    """Where a layer can stand without which all others are right: at both ends' first trouble."""
    opened = [each.open for each in bounds]
    count = len(bounds)
    upto = _first(count, lambda n: _met([*bounds[:n], *opened[n:]]) is None)
    behind = _first(count, lambda n: _met([*opened[: count - n], *bounds[count - n :]]) is None)
    return range(count - behind, upto)


def _first(count: int, fails: Callable[[int], bool]) -> int:
    """The smallest number of layers that fails; `count` is known to."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _met(bounds: Sequence[_Bounds]) -> tuple[Factors, ...] | None:
    """Factors within all bounds, in the middle of what these leave open; None if there are none."""
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
            # Both ends meet all bounds, and so does what lies midway: these are linear.
            return tuple(_factors(*ends) for ends in zip(low[1:], high[1:], strict=True))
    return None


def _factors(low: Array, high: Array) -> Factors:
    return Factors(np.exp((low + high) / 2), np.expm1((high - low) / 2))


def _forward(bound: _Bounds, low: list[Array], high: list[Array], place: int) -> None:
    """What the outputs' factors can be, by the inputs'."""
    shape = (bound.low.shape[0], 1, bound.low.shape[2])
    least = (low[place].reshape(shape) + bound.low).max(axis=2).reshape(-1)
    most = (high[place].reshape(shape) + bound.high).min(axis=2).reshape(-1)
    low[place + 1] = np.maximum(low[place + 1], least)
    high[place + 1] = np.minimum(high[place + 1], most)


def _backward(bound: _Bounds, low: list[Array], high: list[Array], place: int) -> None:
    """What the inputs' factors can be, by the outputs'."""
    shape = (*bound.low.shape[:2], 1)
    least = (low[place + 1].reshape(shape) - bound.high).max(axis=1).reshape(-1)
    most = (high[place + 1].reshape(shape) - bound.low).min(axis=1).reshape(-1)
    low[place] = np.maximum(low[place], least)
    high[place] = np.minimum(high[place], most)
