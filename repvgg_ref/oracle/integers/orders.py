"""Channels in another order, and scaled: what the next layer takes back makes an equal network.

As for floats (`oracle.symmetry`): a change of a layer's output channels counts only if the next
layer reads them so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.oracle.integers.factors import HALF, Factors, Pair, agreeing, factors_of, undone
from repvgg_ref.oracle.integers.settings import clips_at_zero
from repvgg_ref.oracle.report import Equivalence, Finding
from repvgg_ref.oracle.symmetry.match import Change
from repvgg_ref.oracle.symmetry.words import equivalences, not_taken_back

_MOST = 0.75  # of the weights: factors that other layers leave open are known nearly
_FITTING = 0.25  # of the weights: factors of which fewer are in accord are found by chance


class Following(NamedTuple):
    """The layer behind the one at hand: what it should hold, and what it holds."""

    name: str
    weight: Array
    layer: IntegerLayer

    def pair(self, order: Array, factors: Factors | None) -> Pair | None:
        """It, reading channels in `order` and scaled; None if its groups do not allow that."""
        rows = entered(self.weight, order, self.layer.groups)
        if (
            rows is None
            or self.layer.weight is None
            or self.layer.weight.shape != self.weight.shape
        ):
            return None
        weight, _ = rows
        zero = np.zeros(len(weight))
        plain = Pair(self.name, weight, zero, np.zeros_like(weight), self.layer)
        return undone(plain, factors)


class Settled(NamedTuple):
    """A layer's arrays in the candidate's order and scale, and what that was."""

    pair: Pair
    order: Array  # of ours in each place of the output
    factors: Factors | None
    same: tuple[Equivalence, ...] = ()
    findings: tuple[Finding, ...] = ()


def entered(weight: Array, order: Array, groups: int) -> tuple[Array, Array] | None:
    """The kernel for inputs in `order`, and the row of ours that each of its rows is.

    None if the order takes channels out of their group.
    """
    per_group, outputs = weight.shape[1], len(weight) // groups
    if len(order) != per_group * groups:
        return None
    parts, rows = [], []
    for group in range(groups):
        inside = order[group * per_group : (group + 1) * per_group]
        homes = np.unique(inside // per_group)
        if len(homes) > 1:
            return None
        own = np.arange(homes[0] * outputs, (homes[0] + 1) * outputs)
        parts.append(weight[own][:, inside - homes[0] * per_group])
        rows.append(own)
    return np.concatenate(parts), np.concatenate(rows)


def settle(pair: Pair, rows: Array, following: Following | None) -> Settled:
    """Find the order and the factors of a layer's output channels.

    `rows` are the channels of ours in the places of `pair`, before any search.
    """
    if is_right(pair):
        return Settled(pair, rows, None)
    if following is None:
        return Settled(pair, rows, None, findings=misplaced(pair, "whoever reads the logits"))
    plain = _scaled(pair, rows, following)
    if _fit(plain.pair) == plain.pair.weight.size:
        return plain
    order = _matched(plain.pair)
    if (order == np.arange(len(order))).all():
        return plain
    moved = _scaled(_taken(pair, order), rows[order], following)
    if _fit(moved.pair) <= _fit(plain.pair):
        return plain
    change = Change(moved.order, np.ones(len(rows)))
    if _likeness(following, moved) > _likeness(following, plain):
        said = equivalences(pair.name, change, following.name)
        return moved._replace(same=(*said, *moved.same))
    if _fit(moved.pair) < moved.pair.weight.size:  # it explains too little to be named
        return plain
    return plain._replace(findings=(not_taken_back(pair.name, change, following.name),))


def misplaced(pair: Pair, after: str) -> tuple[Finding, ...]:
    """That a layer's channels stand in another order, which `after` does not take back."""
    order = _matched(pair)
    if (order == np.arange(len(order))).all() or _fit(
        _taken(pair, order)
    ) < _MOST * pair.weight.size:
        return ()
    return (not_taken_back(pair.name, Change(order, np.ones(len(order))), after),)


def in_order(pair: Pair, rows: Array, order: Array) -> Pair:
    """`pair`, whose rows are `rows` of ours, with those of `order`."""
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    return pair if (rows == order).all() else _taken(pair, place[order])


def _taken(pair: Pair, order: Array) -> Pair:
    """Our rows in another order; the integers stay."""
    return pair._replace(weight=pair.weight[order], bias=pair.bias[order], slack=pair.slack[order])


def _fit(pair: Pair) -> int:
    """How many weights are the nearest integers."""
    return agreeing(pair)


def is_right(pair: Pair) -> bool:
    """Whether there is nothing to explain."""
    return _fit(pair) == pair.weight.size and bool((pair.bias_apart <= HALF).all())


def is_held(pair: Pair) -> bool:
    """Whether no more is wrong than biases beside the nearest integers."""
    biases = (pair.bias_apart <= HALF) | pair.bias_beside
    return bool(biases.all()) and _fit(pair) == pair.weight.size


def _scaled(pair: Pair, order: Array, following: Following) -> Settled:
    """With the factors of the channels, if the next layer takes them back."""
    factors = factors_of(pair) if clips_at_zero(pair.layer) else None
    if not factors or _fit(pair.times(factors)) < _FITTING * pair.weight.size:
        return Settled(pair, order, None)
    divided, plain = (following.pair(order, each) for each in (factors, None))
    if divided is None or plain is None:
        return Settled(pair, order, None)
    agree = [_agreeing_in_any_order(each) for each in (divided, plain)]
    if agree[0] <= agree[1]:
        return Settled(pair, order, None)
    says = Equivalence(pair.name, "scaling", factors.says(following.name))
    return Settled(pair.times(factors), order, factors, (says,))


def _agreeing_in_any_order(pair: Pair) -> int:
    """How many weights of a layer are right once its own channels are scaled, and in order."""
    own = pair.times(factors_of(pair))
    found = _fit(own)
    if found == own.weight.size:
        return found
    order = _matched(own)
    if (order == np.arange(len(order))).all():
        return found
    moved = _taken(pair, order)
    return max(found, _fit(moved.times(factors_of(moved))))


def _likeness(following: Following, settled: Settled) -> float:
    """How alike the next layer's rows are to what they should be, in whatever order."""
    pair = following.pair(settled.order, settled.factors)
    if pair is None:
        return -np.inf
    cosines = _cosines(pair, with_bias=False)
    return float(np.take_along_axis(cosines, _assigned(cosines, pair)[:, None], axis=1).mean())


def _matched(pair: Pair) -> Array:
    """The row of ours that each row of the integers is most like, each once, group by group."""
    assert pair.layer.weight is not None
    cosines = _cosines(pair, with_bias=True)
    wrong = np.abs(pair.layer.weight - pair.held(pair.steps)) > HALF + pair.slack
    right = np.flatnonzero(~wrong.reshape(len(wrong), -1).any(axis=1))
    cosines[right, right] = 2.0  # a channel that is its own stays
    return _assigned(cosines, pair)


def _assigned(cosines: Array, pair: Pair) -> Array:
    groups = pair.layer.groups
    per_group = len(cosines) // groups
    found = np.empty(len(cosines), np.int64)
    for group in range(groups):
        inside = slice(group * per_group, (group + 1) * per_group)
        best = scipy.optimize.linear_sum_assignment(cosines[inside, inside], maximize=True)[1]
        found[inside] = best + group * per_group
    return found


def _cosines(pair: Pair, *, with_bias: bool) -> Array:
    """(theirs, ours) between rows of real numbers."""
    assert pair.layer.weight is not None
    count = len(pair.weight)
    theirs = pair.layer.weight.reshape(count, -1) * pair.scale[:, None]
    ours = pair.weight.reshape(count, -1)
    if with_bias:
        unit = float(pair.layer.input.scale) * pair.scale
        theirs = np.concatenate([theirs, (pair.held_bias * unit)[:, None]], axis=1)
        ours = np.concatenate([ours, pair.bias[:, None]], axis=1)
    found: Array = _unit(theirs) @ _unit(ours).T
    found[np.arange(count), np.arange(count)] += 1e-9  # of two equal ones a channel is its own
    return found


def _unit(rows: Array) -> Array:
    size = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    found: Array = rows / np.maximum(size, 1e-300)
    return found
