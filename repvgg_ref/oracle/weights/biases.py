"""How a file's biases are formed and added: the way that gives all of them, and how sure that is.

Ways differ in few biases, and those by an ulp or two; most differ in none where a block has one or
two terms. One that gives most biases is therefore not known to be the file's. It is, for blocks of
so many terms, if each way that would give other numbers there is contradicted by many of the
file's; else a bias is wrong only if it lies beyond all that right ways give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.weights.arithmetic import FLUSH, UNITS, Arithmetic
from repvgg_ref.oracle.weights.orders import (
    Order,
    Shift,
    added_parts,
    parameters,
    shift_parts,
    shifts,
    sums,
)
from repvgg_ref.oracle.weights.terms import Terms

_OFF, _FEW_OFF = 0.01, 1  # share and number of a file's biases that may be wrong for all that
_CONTRADICTED = 8  # biases of the file, by every way that is another one
_BEYOND = 1.0  # roundings of a bias's magnitudes: ways that are not among ours err so much more


class Vectors(NamedTuple):
    """A layer's biases and what they are made from; its slopes as taps show them, if they do."""

    terms: Terms
    bias: Array
    slopes: list[Array | None] | None = None


class Settled(NamedTuple):
    """A way to form biases; `known` are the numbers of terms for which no other one would do."""

    shift: Shift
    sequence: tuple[int, ...]
    known: frozenset[int]


class _Tried(NamedTuple):
    shift: Shift
    sequence: tuple[int, ...]
    given: dict[int, Array]  # number of terms -> the biases of all layers that have so many
    wrong: dict[int, int]

    @property
    def off(self) -> int:
        return sum(self.wrong.values())


def differs(got: Array, want: Array) -> Array:
    """Where an array is not the float32 one `want`; what was flushed to zero is."""
    return np.asarray(~((got == want) | (np.abs(got - want.astype(np.float64)) <= FLUSH)))


def settled(layers: Sequence[Vectors], order: Order, a: Arithmetic) -> Settled | None:
    """How biases are formed and added; None if no way of ours gives (nearly) all of them.

    Parameters
    ----------
    layers : sequence of Vectors
        All of a file's, as far as their slopes are known.
    order : Order
        How the file's taps are formed: `Vectors.slopes` are that order's.
    """
    got: dict[int, list[Array]] = {}
    for layer in layers:
        got.setdefault(len(layer.terms.terms), []).append(layer.bias)
    whole = {number: np.concatenate(each) for number, each in got.items()}
    tried = [
        _Tried(
            shift, sequence, given, {n: int(differs(whole[n], g).sum()) for n, g in given.items()}
        )
        for shift, sequence, given in _given(layers, order, a)
    ]
    best = min(tried, key=lambda each: each.off)
    if best.off > max(_FEW_OFF, _OFF * sum(map(len, whole.values()))):
        return None
    known = frozenset(number for number in whole if _is_known(best, tried, number))
    return Settled(best.shift, best.sequence, known)


def _is_known(best: _Tried, tried: list[_Tried], number: int) -> bool:
    mine, least = best.given[number], best.wrong[number] + _CONTRADICTED
    return all(
        other.wrong[number] >= least or np.array_equal(other.given[number], mine) for other in tried
    )


def _given(
    layers: Sequence[Vectors], order: Order, a: Arithmetic
) -> Iterator[tuple[Shift, tuple[int, ...], dict[int, Array]]]:
    """What every way gives, layers of as many terms joined."""
    largest = max((layer.terms for layer in layers), key=lambda terms: len(terms.terms))
    sequences = _sequences(largest)
    for shift in shifts(a):
        joined: dict[int, list[list[list[Array]]]] = {}
        for terms, _, slopes in layers:
            same = shift.order == order and slopes is not None
            shared = slopes if same and slopes else parameters(terms, shift.order, a)
            mine = shift_parts(terms, shift, shared, a)
            joined.setdefault(len(terms.terms), []).append(mine)
        parts = {number: _joined(each) for number, each in joined.items()}
        sums_of: dict[tuple[int, ...], Array] = {}
        for sequence in sequences:
            given = {}
            for number, part in parts.items():
                own = tuple(n for n in sequence if n < number)
                key = (number, *own)
                if key not in sums_of:
                    sums_of[key] = added_parts(part, own, a)
                given[number] = sums_of[key]
            yield shift, sequence, given


def _joined(layers: list[list[list[Array]]]) -> list[list[Array]]:
    """The parts of several layers with as many terms each, end to end."""
    return [
        [np.concatenate(arrays) for arrays in zip(*term, strict=True)]
        for term in zip(*layers, strict=True)
    ]


def _sequences(terms: Terms) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(how.order for how in sums(terms)))


def beyond(terms: Terms, bias: Array, a: Arithmetic) -> Array:
    """Which biases (O,) lie outside of all that right ways give, by more than a rounding."""
    low, high = np.full(bias.shape, np.inf), np.full(bias.shape, -np.inf)
    size = np.zeros(bias.shape)
    for shift in shifts(a):
        parts = shift_parts(terms, shift, parameters(terms, shift.order, a), a)
        for sequence in _sequences(terms):
            total = added_parts(parts, sequence, a).astype(np.float64)
            low, high = np.minimum(low, total), np.maximum(high, total)
        if shift.running:
            size = np.asarray(sum(np.abs(p.astype(np.float64)) for part in parts for p in part))
    room = _BEYOND * (1 if a.direction == "nearest" else 2) * UNITS["fp32"] * size + FLUSH
    return np.asarray(~((bias >= low - room) & (bias <= high + room)))
