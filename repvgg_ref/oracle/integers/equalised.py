"""The factors of all channels of a chain at once, and what of its integers no factors explain.

Where no factors meet all bounds, the fewest changes are sought with which some do. A wrong scale is
one number, and looks like a factor that the next layer does not take back: of a channel, or of a
whole layer with one scale; a wrong bias is one, too. Only where neither explains it are a layer's
integers left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair
from repvgg_ref.oracle.integers.ratios import Bounds, Ends, met

_ENOUGH = 6  # channels: that so many wrong biases would all be in accord is no chance
_HUNDREDTHS = 0.02  # of a step
_BIASES_TIMES = (-1.0, 2.0, 0.5)  # subtracted, added twice, or in units half or twice as large
_MOST = 3  # layers with a fault: who has more has another network


class Fault(NamedTuple):
    """What of a layer is not held to the others' factors: `rows`, (O,) bool.

    `kind`: "scale" where their integers are right but for a factor of their own, a wrong scale,
    and `with_biases` says that their biases are right without it; "bias" where their biases alone
    are wrong, "weight" where their weights are; else "all" of their integers.
    """

    rows: Array
    kind: Literal["scale", "bias", "weight", "all"]
    with_biases: bool = False

    @property
    def has_weights(self) -> bool:
        """Whether weights themselves are wrong, not only what they are multiplied by."""
        return self.kind in ("weight", "all")

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
        return frozenset(place for place, fault in self.faults.items() if fault.has_weights)


def solved(pairs: Sequence[Pair]) -> Solved | None:
    """The factors with which all integers are the nearest ones, or most in all but a few layers.

    `pairs` are the layers of a chain in their own order, not scaled. None if more are wrong.
    """
    last = len(pairs) - 1
    bounds = [Bounds.of(pair, last=place == last) for place, pair in enumerate(pairs)]
    plain = _Chain(tuple(pairs), tuple(bounds))
    if plain.met() is None:
        chain = plain.with_the_smallest() or plain.explained(_numbers) or plain.explained(_anything)
        if chain is None:
            return None
        plain = chain
    for place in plain.faults:
        plain = plain.narrowed(place)
    chain = plain.supposed()
    found = chain.met()
    return None if found is None else Solved(chain.simplest(found), plain.faults)


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
        elif fault.kind == "scale":
            biases = ~bound.fixed & (not fault.with_biases)
            yield bound.of_biases(biases)
            yield bound.between(fault.rows, with_biases=fault.with_biases)
        elif fault.kind == "bias":
            yield bound.of_biases(~fault.rows | bound.fixed)
        elif fault.kind == "weight":
            yield bound.of_weights(~fault.rows)
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
        able = (each for each in self._choices(stop, kinds) if each.met(0, stop) is not None)
        return max(able, key=lambda each: each.trouble, default=None)

    def with_the_smallest(self) -> _Chain | None:
        """It with the one fault that explains everything by the fewest numbers."""
        trouble = self.trouble
        for kinds in (_numbers, _anything):  # all of a layer is always more
            able = (each for each in self._choices(trouble, kinds) if each.met() is not None)
            narrow = [each.narrowed(place) for each in able for place in each.faults]
            if narrow:
                return min(narrow, key=lambda each: each.changed)
        return None

    def _choices(self, stop: int, kinds: Kinds) -> Iterator[_Chain]:
        """One fault more, in the shortest run of layers that ends at `stop` and cannot be met."""
        length = _first(stop, lambda n: self.met(stop - n, stop) is None)
        places = [place for place in range(stop - length, stop) if place not in self.faults]
        return (self.but(place, fault) for place, fault in kinds(self, places))

    @property
    def changed(self) -> int:
        """How many numbers are wrong by its faults; all of a layer's scales are one mistake."""
        total = 0
        for place, fault in self.faults.items():
            rows = int(fault.rows.sum())
            if fault.kind == "scale":
                usual = fault.with_biases == self.has_own_unit(place)
                total += (1 if fault.rows.all() else rows) + (0 if usual else rows)
            else:
                weights = self.pairs[place].weight[0].size if fault.has_weights else 0
                total += rows * (weights + (fault.kind != "weight"))
        return total

    def has_own_unit(self, place: int) -> bool:
        """Whether a layer's biases are none of its weights' scales' business."""
        return self.pairs[place].stated is not None

    def supposed(self) -> _Chain:
        """With layers at fault as known bugs make them, where all can be met so.

        Their factors are known better then than by their neighbours alone.
        """
        chain = self
        for place, fault in self.faults.items():
            for pair in self._suppositions(place, fault):
                bound = Bounds.of(pair, last=place == len(self.pairs) - 1)
                bounds = (*chain.bounds[:place], bound, *chain.bounds[place + 1 :])
                others = {at: each for at, each in chain.faults.items() if at != place}
                if (tried := replace(chain, bounds=bounds, faults=others)).met() is not None:
                    chain = tried
                    break
        return chain

    def _suppositions(self, place: int, fault: Fault) -> Iterator[Pair]:
        pair = self.pairs[place]
        if fault.kind == "bias":
            for by in _BIASES_TIMES:
                yield pair._replace(bias=by * pair.bias)
            held = pair.layer.bias
            if pair.stated is None and held is not None and not (held % 2).any():
                yield pair._replace(layer=replace(pair.layer, bias=held // 2))  # rounded before
            return
        scale = pair.layer.weight_scale
        if scale is not None and scale.ndim:
            for step in (1, -1):
                rolled = replace(pair.layer, weight_scale=np.roll(scale, step))
                yield pair._replace(layer=rolled)
        if pair.weight.ndim == 4 and pair.weight.shape[2] > 1:
            for axes in ((2, 3), (2,), (3,)):
                yield pair._replace(weight=np.flip(pair.weight, axes))
            yield pair._replace(weight=pair.weight.swapaxes(2, 3))
        if fault.has_weights:
            yield pair._replace(weight=-pair.weight)

    def but(self, place: int, fault: Fault) -> _Chain:
        """With this fault."""
        return replace(self, faults={**self.faults, place: fault})

    def narrowed(self, place: int) -> _Chain:
        """With a fault in no more rows than it takes; one scale for all is wrong for all."""
        fault = self.faults[place]
        scale = self.pairs[place].layer.weight_scale
        if fault.kind == "scale" and (scale is None or not scale.ndim):
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


Kinds = Callable[[_Chain, Sequence[int]], Iterator[tuple[int, Fault]]]


def _numbers(chain: _Chain, places: Sequence[int]) -> Iterator[tuple[int, Fault]]:
    """Wrong biases and scales; a bias with a scale of its own mostly has it rightly."""
    everything = [(place, np.ones(len(chain.bounds[place].own_low), bool)) for place in places]
    yield from ((place, Fault(rows, "bias")) for place, rows in everything)
    for usual in (True, False):
        for place, rows in everything:
            yield place, Fault(rows, "scale", chain.has_own_unit(place) == usual)


def _anything(chain: _Chain, places: Sequence[int]) -> Iterator[tuple[int, Fault]]:
    """These before all integers of a layer."""
    yield from _numbers(chain, places)
    for place in places:
        rows = np.ones(len(chain.bounds[place].own_low), bool)
        yield place, Fault(rows, "weight")  # biases tell the factors of what is wrong
        yield place, Fault(rows, "all")


def is_shown(pairs: Sequence[Pair], faults: Mapping[int, Fault]) -> bool:
    """Whether factors are asked for by more than what a few wrong numbers would ask for, too.

    A bias that is off by two may be what some factor would have made it. But then nothing else asks
    for that factor: no weight in another layer, and no other channel. What is off by hundredths of
    a step only, no wrong number is.
    """
    asking, layers, weights, worst = 0, 0, 0, 0.0
    for place, pair in enumerate(pairs):
        fault = faults.get(place)
        if fault is not None and fault.has_weights:
            continue
        apart = np.abs(pair.layer.weight - pair.held(pair.steps)).reshape(len(pair.weight), -1)
        biases = np.where(pair.bias_beside, 0.0, pair.bias_apart)
        held = np.ones(len(apart), bool) if fault is None else ~fault.rows
        weighed = held | (fault is not None and fault.kind == "bias")
        worst = max(worst, float(apart[weighed].max(initial=0)), float(biases[held].max(initial=0)))
        rows = (apart > HALF).any(axis=1) & weighed
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
