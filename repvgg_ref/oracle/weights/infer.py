"""Which conversion made a file: the one that reproduces (nearly) all of its taps.

It is inferred once for a whole file, from some rows and inputs of every layer, and must hold in at
least half of the layers: a layer that is wrong does not hide how the others were made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.weights.arithmetic import DIRECTIONS, Arithmetic, stepped
from repvgg_ref.oracle.weights.biases import Vectors, differs, settled
from repvgg_ref.oracle.weights.conversion import Conversion, Exact, Simulated
from repvgg_ref.oracle.weights.orders import (
    ORDERS,
    Order,
    Sum,
    parameters,
    sums,
    tap_predicted,
)
from repvgg_ref.oracle.weights.terms import Tap, Terms, own_inputs, tap_of

Layer = tuple[Terms, FusedConv]
Slopes = list[Array | None]

_ROWS, _INPUTS = 12, 16  # of each layer that are looked at
_OFF, _FEW_OFF = 0.005, 2  # share and number of a layer's taps that may be wrong for all that
_STEPS = (0, 1, -1, 2, -2, 3, -3, 4, -4)


class Sample(NamedTuple):
    """Some rows and inputs of a layer; `alone`: number of a term -> its raw weights, the taps.

    `biases` are all of the layer's, `own` all rows' inputs of their own number: an identity lies
    there, so that orders of addition differ there alone.
    """

    terms: Terms
    got: FusedConv
    alone: dict[int, tuple[Array, Array]]
    biases: Vectors
    own: tuple[Terms, FusedConv]


class Score(NamedTuple):
    """How well a way of computing reproduces the samples: layers that it does, taps right."""

    layers: int
    right: int


def infer(layers: Iterable[Layer], stored: tuple[str, str]) -> Conversion | None:
    """The conversion that reproduces the layers; None if none of ours does.

    Parameters
    ----------
    layers : iterable of (Terms, FusedConv)
        What the kernels are made from, and the kernels found; gone through once.
    stored : (str, str)
        The formats of weights and biases, "fp64", "fp32", "fp16" or "bf16".
    """
    samples = [_sample(terms, got) for terms, got in layers]
    # what is copied says nothing of how the others were fused, unless there are no others
    samples = [sample for sample in samples if sample.terms.is_computed] or samples
    enough = (len(samples) + 1) // 2
    exact = _exact(samples, stored, enough)
    known = sum(sample.terms.is_stored for sample in samples)
    if exact is not None or stored[0] != "fp32" or known < enough:
        return exact
    ways = [(order, Arithmetic(d)) for d in DIRECTIONS for order in ORDERS]
    for steps in ((0,), _STEPS):  # most roots are right to the last bit
        found = [(_score([_odd(s, *way, steps) for s in samples]), way) for way in ways]
        score, (order, a) = max(found, key=lambda each: each[0])
        if score.layers >= enough:
            break
    else:
        return None
    slopes = [_fitted(sample, order, a) for sample in samples]
    moved = np.concatenate([abs(s) for _, s in slopes])
    fits = [fitted for fitted, _ in slopes]
    added = _best_sum(samples, order, a, fits, enough, any_moved=bool(moved.any()))
    # slopes that err are known in the rows alone that were looked at
    vectors = [
        Vectors(sample.terms, sample.got.bias, fitted) if moved.any() else sample.biases
        for sample, (fitted, _) in zip(samples, slopes, strict=True)
    ]
    spread = int(np.quantile(moved, 0.99, method="lower"))
    return Simulated(stored, a, order, added, settled(vectors, order, a), spread)


def _sample(terms: Terms, got: FusedConv) -> Sample:
    """A spread of a layer's rows and inputs; inputs of the rows' own numbers are among them."""
    outputs, inputs = got.weight.shape[:2]
    rows = np.unique(np.linspace(0, outputs - 1, _ROWS).astype(int))
    columns = np.unique(np.append(np.linspace(0, inputs - 1, _INPUTS).astype(int), rows % inputs))
    kernel = FusedConv(got.weight[rows][:, columns], got.bias[rows])
    some = terms.rows(rows, columns)
    taps: dict[int, list[Tap]] = {}
    for tap in some.alone:
        taps.setdefault(next(iter(some.on(tap))), []).append(tap)
    alone = {
        number: (
            np.concatenate([some.on(tap)[number] for tap in mine], axis=1),
            np.concatenate([tap_of(kernel, tap) for tap in mine], axis=1),
        )
        for number, mine in taps.items()
    }
    whole = terms.rows(np.arange(outputs), columns[:1])  # of which vectors alone are looked at
    own = terms.own, FusedConv(own_inputs(got.weight), got.bias)
    return Sample(some, kernel, alone, Vectors(whole, got.bias), own)


def _exact(samples: list[Sample], stored: tuple[str, str], enough: int) -> Exact | None:
    """The fusion in a wider format, if that is it."""
    best: tuple[int, Exact | None] = (np.iinfo(int).max, None)
    for way in (Exact(stored, d, eps) for eps in (False, True) for d in DIRECTIONS):
        wrong = [way.check(sample.terms, sample.got) for sample in samples]
        if sum(_is_few(odd.taps) and _is_few(odd.bias, 0.2) for odd in wrong) >= enough:
            count = int(sum(odd.by_channel.sum() for odd in wrong))
            best = min(best, (count, way), key=lambda each: each[0])
            if count == 0:
                break
    return best[1]


def _is_few(odd: Array, share: float = _OFF) -> bool:
    return bool(odd.sum() <= max(min(_FEW_OFF, odd.size // 4), share * odd.size))


def _score(wrong: list[Array]) -> Score:
    right = sum(int(odd.size - odd.sum()) for odd in wrong)
    return Score(sum(map(_is_few, wrong)), right)


def _odd(sample: Sample, order: Order, a: Arithmetic, steps: tuple[int, ...]) -> Array:
    """The taps that `order` does not give, with the best of `steps` for each channel's slope."""
    start = parameters(sample.terms, order, a)
    if sample.alone:
        tried = [_odd_alone(sample, order, a, _stepped(start, step)) for step in steps]
    else:
        terms, got = sample.terms, sample.got
        tried = [
            _stacked(
                [
                    differs(tap_of(got, tap), tap_predicted(terms, tap, order, how, start, a))
                    for tap in terms.taps
                ]
            )
            for how in sums(terms)
        ]
        return min(tried, key=lambda odd: int(odd.sum()))
    best = tried[0]
    for odd in tried[1:]:
        best = np.where((odd.sum(axis=1) < best.sum(axis=1))[:, None], odd, best)
    return best


def _stacked(odd: list[Array]) -> Array:
    return np.concatenate(odd, axis=1)


def _stepped(slopes: Slopes, step: Array | int) -> Slopes:
    return [s if s is None else stepped(s, step) for s in slopes]


def _odd_alone(sample: Sample, order: Order, a: Arithmetic, slopes: Slopes) -> Array:
    """Of the taps that one term makes alone, those that are not what `order` gives, (O, K)."""
    found = []
    for number, (raw, got) in sample.alone.items():
        branch, slope = sample.terms.terms[number].branch, slopes[number]
        held = a.held(raw)
        gamma = a.held(branch.gamma)[:, None] if branch.has_norm else held
        want = order.formed(held, gamma, None if slope is None else slope[:, None], a)
        found.append(differs(got, want))
    return _stacked(found)


def _fitted(sample: Sample, order: Order, a: Arithmetic) -> tuple[Slopes, Array]:
    """Each channel's slopes as the taps of one term alone show them; by how many ulps they err."""
    start = parameters(sample.terms, order, a)
    moved = np.zeros(len(sample.got.weight), int)
    if not sample.alone:
        return start, moved
    odd = np.stack(
        [_odd_alone(sample, order, a, _stepped(start, step)).sum(axis=1) for step in _STEPS]
    )
    moved = np.array(_STEPS)[odd.argmin(axis=0)]
    slopes = [
        s if s is None or n not in sample.alone else stepped(s, moved) for n, s in enumerate(start)
    ]
    return slopes, moved


def _best_sum(
    samples: list[Sample],
    order: Order,
    a: Arithmetic,
    slopes: list[Slopes],
    enough: int,
    *,
    any_moved: bool,
) -> Sum | None:
    """How taps of several terms are added; None if no way of ours reproduces them."""
    largest = max((sample.terms for sample in samples), key=lambda terms: len(terms.terms))
    parts = [
        [(sample.terms, sample.got, mine), (*sample.own, parameters(sample.own[0], order, a))]
        for sample, mine in zip(samples, slopes, strict=True)
    ]
    if any_moved:  # slopes that err are known in the rows alone that were looked at
        parts = [of_layer[:1] for of_layer in parts]
    found: list[tuple[Score, int, Sum]] = []
    for how in sums(largest):
        wrong = []
        for of_layer in parts:
            odd = [
                differs(tap_of(got, tap), tap_predicted(terms, tap, order, how, mine, a)).ravel()
                for terms, got, mine in of_layer
                for tap in terms.shared
            ]
            wrong.append(np.concatenate(odd) if odd else np.zeros(1, bool))
        found.append((_score(wrong), -len(found), how))
    score, _, best = max(found, key=lambda each: each[:2])
    return best if score.layers >= enough else None
