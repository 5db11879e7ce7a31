"""The factors of all channels of a chain at once, and what of its integers no factors explain.

Where no factors meet all bounds, the fewest changes are sought with which some do. A wrong scale is
one number, and looks like a factor that the next layer does not take back: of a channel, or of a
whole layer with one scale. Only where no scale explains it are a layer's integers left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair
from repvgg_ref.oracle.integers.ratios import Bounds, Ends, met

_ENOUGH = 6  # channels: that so many wrong biases would all be in accord is no chance
_HUNDREDTHS = 0.02  # of a step
_MOST = 3  # layers with a fault: who has more has another network


class Fault(NamedTuple):
    """What of a layer is not held to the others' factors: `rows`, (O,) bool.

    `is_scale`: their integers are right but for a factor of their own, a wrong scale;
    `with_biases` then says that their biases are right without it.
    """

    rows: Array
    is_scale: bool
    with_biases: bool = False

    def but(self, rows: Array) -> Fault:
        """Without these rows' indices."""
        return self._replace(rows=self.rows & ~np.isin(np.arange(len(self.rows)), rows))


@dataclass(frozen=True)
class Solved:
    """Factors of every layer, and the faults, by place, without which there are none."""

    factors: tuple[Factors, ...]
    faults: Mapping[int, Fault]

    @property
    def without(self) -> frozenset[int]:
        """Places of layers that are wrong."""
        return frozenset(self.faults)

    @property
    def left_out(self) -> frozenset[int]:
        """Of those the layers in which more than scales is wrong."""
        return frozenset(place for place, fault in self.faults.items() if not fault.is_scale)


def solved(pairs: Sequence[Pair]) -> Solved | None:
    """The factors with which all integers are the nearest ones, or most in all but a few layers.

    `pairs` are the layers of a chain in their own order, not scaled. None if more are wrong.
    """
    last = len(pairs) - 1
    bounds = [Bounds.of(pair, last=place == last) for place, pair in enumerate(pairs)]
    plain = _Chain(tuple(pairs), tuple(bounds))
    if (chain := plain.explained(_scales) or plain.explained(_anything)) is None:
        return None
    for place in chain.faults:
        chain = chain.narrowed(place)
    found = chain.met()
    return None if found is None else Solved(chain.simplest(found), chain.faults)


@dataclass(frozen=True)
class _Chain:
    """What the layers of a chain allow, but for their faults."""

    pairs: tuple[Pair, ...]
    bounds: tuple[Bounds, ...]
    faults: Mapping[int, Fault] = field(default_factory=dict)

    def met(self, start: int = 0, stop: int | None = None) -> tuple[Ends, ...] | None:
        """Factors of every layer's outputs that meet what layers from `start` to `stop` say."""
        stop = len(self.bounds) if stop is None else stop
        steps: list[Bounds] = []
        ends: list[int] = []
        for place, bound in enumerate(self.bounds):
            inside = start <= place < stop
            steps += self._steps(place) if inside else [bound.open]
            ends.append(len(steps) - 1)
        found = met(steps)
        return None if found is None else tuple(found[end] for end in ends)

    def _steps(self, place: int) -> Iterator[Bounds]:
        """A layer's bounds, and what lies between its factors and those that the next one takes."""
        bound, fault = self.bounds[place], self.faults.get(place)
        if fault is None:
            yield bound
        elif fault.is_scale:
            biases = ~bound.fixed & (not fault.with_biases)
            yield bound.of_biases(biases)
            yield bound.between(fault.rows, with_biases=fault.with_biases)
        else:
            yield bound.of_rows(~fault.rows)

    def explained(self, kinds: Kinds) -> _Chain | None:
        """With the fewest faults of these kinds with which all others can be met."""
        chain: _Chain | None = self
        while chain is not None and chain.met() is None:
            chain = None if len(chain.faults) == _MOST else chain._with_one_fault(kinds)
        return chain

    def _with_one_fault(self, kinds: Kinds) -> _Chain | None:
        """It with the fault that explains most of the first trouble; the first of several."""
        stop = self.trouble
        # The shortest run of layers that ends there and cannot be met.
        length = _first(stop, lambda n: self.met(stop - n, stop) is None)
        places = [place for place in range(stop - length, stop) if place not in self.faults]
        choices = (
            self.but(place, fault) for faults in kinds(self, places) for place, fault in faults
        )
        able = (each for each in choices if each.met(0, stop) is not None)
        return max(able, key=lambda each: each.trouble, default=None)

    def but(self, place: int, fault: Fault) -> _Chain:
        """With this fault."""
        return replace(self, faults={**self.faults, place: fault})

    def narrowed(self, place: int) -> _Chain:
        """With a fault in no more rows than it takes; one scale for all is wrong for all."""
        fault = self.faults[place]
        scale = self.pairs[place].layer.weight_scale
        if fault.is_scale and (scale is None or not scale.ndim):
            return self
        return self._taken_back(place, np.flatnonzero(fault.rows))

    def _taken_back(self, place: int, rows: Array) -> _Chain:
        tried = self.but(place, self.faults[place].but(rows))
        if tried.met() is not None:
            return tried
        chain = self
        if len(rows) > 1:
            for half in np.array_split(rows, 2):
                chain = chain._taken_back(place, half)
        return chain

    @property
    def trouble(self) -> int:
        """How many layers are the fewest that cannot be met together; one more than all if none."""
        return _first(len(self.bounds) + 1, lambda n: self.met(0, n) is None)

    def simplest(self, found: Sequence[Ends]) -> tuple[Factors, ...]:
        """In the middle of what is left open; 1 wherever it can be, if all these can be at once."""
        one = [(each.low <= 0) & (each.high >= 0) for each in found]
        fixed = tuple(
            bound._replace(
                own_low=np.where(at, 0.0, bound.own_low), own_high=np.where(at, 0.0, bound.own_high)
            )
            for bound, at in zip(self.bounds, one, strict=True)
        )
        if (simpler := replace(self, bounds=fixed).met()) is not None:
            found = simpler
        return tuple(
            Factors(np.exp((low + high) / 2), np.expm1((high - low) / 2)) for low, high in found
        )


Choices = Iterator[Iterator[tuple[int, Fault]]]
Kinds = Callable[[_Chain, Sequence[int]], Choices]


def _scales(chain: _Chain, places: Sequence[int]) -> Choices:
    """Wrong scales; a bias with a scale of its own is mostly none of their business."""
    for usual in (True, False):
        yield (
            (place, Fault(rows, True, usual == (chain.pairs[place].stated is not None)))
            for place, rows in _all_rows(chain, places)
        )


def _anything(chain: _Chain, places: Sequence[int]) -> Choices:
    """Wrong scales before other integers."""
    yield from _scales(chain, places)
    yield ((place, Fault(rows, False)) for place, rows in _all_rows(chain, places))


def _all_rows(chain: _Chain, places: Sequence[int]) -> Iterator[tuple[int, Array]]:
    return ((place, np.ones(len(chain.bounds[place].own_low), bool)) for place in places)


def is_shown(pairs: Sequence[Pair], faults: Mapping[int, Fault]) -> bool:
    """Whether factors are asked for by more than what a few wrong numbers would ask for, too.

    A bias that is off by two may be what some factor would have made it. But then nothing else asks
    for that factor: no weight in another layer, and no other channel. What is off by hundredths of
    a step only, no wrong number is.
    """
    asking, layers, weights, worst = 0, 0, 0, 0.0
    for place, pair in enumerate(pairs):
        fault = faults.get(place)
        if fault is not None and not fault.is_scale:
            continue
        apart = np.abs(pair.layer.weight - pair.held(pair.steps)).reshape(len(pair.weight), -1)
        biases = np.where(pair.bias_beside, 0.0, pair.bias_apart)
        held = np.ones(len(apart), bool) if fault is None else ~fault.rows
        worst = max(worst, float(apart[held].max(initial=0)), float(biases[held].max(initial=0)))
        rows = (apart > HALF).any(axis=1) & held
        channels = int((rows | ((pair.bias_apart > HALF) & held)).sum())
        asking, layers, weights = asking + channels, layers + bool(channels), weights + rows.any()
    if weights > 1 or (layers > 1 and asking >= _ENOUGH):
        return True
    return not faults and worst <= HALF + _HUNDREDTHS


def _first(count: int, fails: Callable[[int], bool]) -> int:
    """The smallest number of layers that fails; `count` is known to."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high
