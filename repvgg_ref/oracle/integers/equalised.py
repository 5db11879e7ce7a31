"""The factors of all channels of a chain at once, exactly: what single layers cannot tell.

A tap of s real steps between channel i and channel o became q: ``|q - s c_o / c_i| <= 1/2``, and a
bias says the same of c_o alone. In logarithms these are bounds of differences of two unknowns, and
whether all can be met is decided by shortest paths (Bellman and Ford; Cormen et al., Introduction
to Algorithms, section 24.4). So factors near 1 are found, too, which a layer by itself does not
tell from none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair, bias_room
from repvgg_ref.oracle.integers.settings import clips_at_zero

_ROOM = HALF * (1 - 1e-9)  # that solutions at its very end are none of the judge's alarms
_WIDEST = 30.0  # logarithms of factors: no scale in float32 leaves room for more
_SAME = 1e-13  # of a logarithm: what no further sweep changes
_SWEEPS = 200
_ENOUGH = 6  # channels: that so many wrong biases would all be in accord is no chance
_HUNDREDTHS = 0.02  # of a step
_MOST = 3  # layers that are left out: who has more wrong has another network


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

    def of_rows(self, rows: Array) -> _Bounds:
        """What these output channels say, (O,) bool; factors that must be 1 are."""
        fixed = (self.own_low == 0) & (self.own_high == 0)
        there, own = rows.reshape(*self.low.shape[:2], 1), rows | fixed
        return _Bounds(
            np.where(there, self.low, -np.inf),
            np.where(there, self.high, np.inf),
            np.where(own, self.own_low, -np.inf),
            np.where(own, self.own_high, np.inf),
        )

    @property
    def open(self) -> _Bounds:
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


class Solved(NamedTuple):
    """Factors of every layer, and the places of those of whose channels some had to be left out."""

    factors: tuple[Factors, ...]
    without: frozenset[int]


def solved(pairs: Sequence[Pair]) -> Solved | None:
    """The factors with which all integers are the nearest ones, or most in all but a few layers.

    `pairs` are the layers of a chain in their own order, not scaled. None if more are wrong.
    """
    last = len(pairs) - 1
    bounds = [_Bounds.of(pair, last=place == last) for place, pair in enumerate(pairs)]
    chain = _Chain(bounds)
    while _met(chain.bounds) is None:
        if len(chain.without) == _MOST:
            return None
        chain = chain.less_one()
    for place in chain.without:
        chain.take_back(place, bounds[place], np.arange(len(pairs[place].weight)))
    found = _met(chain.bounds)
    return None if found is None else Solved(found, chain.without)


class _Chain:
    """What the layers of a chain allow, some left out."""

    def __init__(self, bounds: Sequence[_Bounds], without: frozenset[int] = frozenset()) -> None:
        self.opened = [each.open for each in bounds]
        self.without = without
        self.kept: dict[int, list[int]] = {place: [] for place in without}
        self.bounds = [
            self.opened[place] if place in without else each for place, each in enumerate(bounds)
        ]

    def less_one(self) -> _Chain:
        """It without the layer that explains most of the first trouble; the first of several."""
        stop = self.trouble
        # The shortest run of layers that ends there and cannot be met.
        length = _first(stop, lambda n: not self._meets(stop - n, stop))
        choices = (
            _Chain(self.bounds, self.without | {place}) for place in range(stop - length, stop)
        )
        return max(choices, key=lambda each: each.trouble)

    def take_back(self, place: int, bound: _Bounds, rows: Array) -> None:
        """Those of `rows` of a layer that was left out with which all can still be met."""
        tried = bound.of_rows(np.isin(np.arange(len(bound.own_low)), [*self.kept[place], *rows]))
        if _met([*self.bounds[:place], tried, *self.bounds[place + 1 :]]) is not None:
            self.bounds[place] = tried
            self.kept[place] += list(rows)
        elif len(rows) > 1:
            for half in np.array_split(rows, 2):
                self.take_back(place, bound, half)

    @property
    def trouble(self) -> int:
        """How many layers are the fewest that cannot be met together; one more than all if none."""
        return _first(len(self.bounds) + 1, lambda n: not self._meets(0, n))

    def _meets(self, start: int, stop: int) -> bool:
        inside = self.bounds[start:stop]
        return _met([*self.opened[:start], *inside, *self.opened[stop:]]) is not None


def is_shown(pairs: Sequence[Pair], without: frozenset[int]) -> bool:
    """Whether factors are asked for by more than what a few wrong numbers would ask for, too.

    A bias that is off by two may be what some factor would have made it. But then nothing else asks
    for that factor: no weight in another layer, and no other channel. What is off by hundredths of
    a step only, no wrong number is.
    """
    asking, layers, weights, worst = 0, 0, 0, 0.0
    for place, pair in enumerate(pairs):
        if place in without:
            continue
        apart = np.abs(pair.layer.weight - pair.held(pair.steps)).reshape(len(pair.weight), -1)
        biases = np.where(pair.bias_beside, 0.0, pair.bias_apart)
        worst = max(worst, float(apart.max()), float(biases.max()))
        rows = (apart > HALF).any(axis=1)
        channels = int((rows | (pair.bias_apart > HALF)).sum())
        asking, layers, weights = asking + channels, layers + bool(channels), weights + rows.any()
    if weights > 1 or (layers > 1 and asking >= _ENOUGH):
        return True
    return not without and worst <= HALF + _HUNDREDTHS


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
