"""The conversions that reproduce a file: each says which taps it would have given.

`Simulated` is a converter's arithmetic bit for bit; `Exact` stands for all that are wider than the
file's format, so that only storing rounds; `Unsettled` for those that are neither, of which a
channel's common slope and the size of an error are all that is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.weights.arithmetic import (
    FLUSH,
    FORMAT_NAMES,
    IN_WORDS,
    UNITS,
    WIDER,
    Arithmetic,
    Direction,
    narrow,
    stepped,
)
from repvgg_ref.oracle.weights.biases import Settled, beyond, differs
from repvgg_ref.oracle.weights.orders import (
    Order,
    Sum,
    added_parts,
    parameters,
    shift_parts,
    tap_predicted,
)
from repvgg_ref.oracle.weights.slopes import inconsistent
from repvgg_ref.oracle.weights.terms import Terms, tap_of

# Rounding errors that a number may collect before it is stored, in units of what it is summed from:
# the slope 5 (or 8, each operation directed), products and sums 3.
ROUNDINGS = 16

# What a reference in float64 gets wrong, of what a number is summed from.
OWN_ERROR = 8 * UNITS["fp64"]

# What is wrong before a number is stored, in whatever order it was computed: float64's own numbers
# were computed in float64 too.
_FLOAT64_ERROR = ROUNDINGS * UNITS["fp64"] + OWN_ERROR
_COMPUTED_ERROR = dict.fromkeys(("fp64", "fp32"), _FLOAT64_ERROR) | dict.fromkeys(
    ("fp16", "bf16"), ROUNDINGS * UNITS["fp32"]
)

_MOST_STEPS = 8  # by which a root, a reciprocal or a quotient may err: a slope's ulps
_TOGETHER = 0.1  # of the taps that a slope is in must be mended by an ulp of it, or it is none
_FEW_ROWS = 4
_FEW_ROOTS = 3  # of more, all combinations of many ulps would take too long
_NOT_THIS = 0.5  # of a layer's taps contradict: it was not made by this conversion at all


class Odd(NamedTuple):
    """What a conversion does not explain: masks (O, C/G, Kh, Kw) and (O,)."""

    taps: Array
    bias: Array

    @property
    def by_channel(self) -> Array:
        """How many numbers of each channel, (O,)."""
        return np.asarray(self.taps.sum(axis=(1, 2, 3)) + self.bias)


class Exact(NamedTuple):
    """Fused in a wider format than the file's, so that each number is rounded as it is stored.

    Nobody computes in more than float64: what is stored as that is held to its roundings.
    """

    stored: tuple[str, str]
    direction: Direction = "nearest"
    narrow_eps: bool = False

    @property
    def roundings(self) -> float:
        """Roundings that a number may have met."""
        return ROUNDINGS

    @property
    def units(self) -> tuple[float, float]:
        """Unit roundoffs of weights and biases."""
        return UNITS[self.stored[0]], UNITS[self.stored[1]]

    def check(self, terms: Terms, got: FusedConv) -> Odd:
        """Which numbers are not the exact ones, rounded."""
        slopes = [self._slope(terms, n) for n in range(len(terms.terms))]
        wide = slopes[0].dtype
        odd = np.zeros(got.weight.shape, bool)
        for tap in terms.taps:
            parts = [raw.astype(wide) * slopes[n][:, None] for n, raw in terms.on(tap).items()]
            odd[:, :, tap[0], tap[1]] = self._differs(parts, tap_of(got, tap), self.stored[0])
        return Odd(odd, self._differs(self._shifts(terms, slopes), got.bias, self.stored[1]))

    def _slope(self, terms: Terms, number: int) -> Array:
        eps = float(np.float32(terms.eps)) if self.narrow_eps else terms.eps
        branch, wide = terms.terms[number].branch, WIDER if "fp64" in self.stored else np.float64
        if not branch.has_norm:
            return np.ones(len(branch.weight), wide)
        t: Array = branch.gamma / np.sqrt(branch.running_var.astype(wide) + wide(eps))
        return t

    def _shifts(self, terms: Terms, slopes: list[Array]) -> list[Array]:
        if terms.bias is not None:
            return [terms.bias]
        found: list[Array] = []
        for term, t in zip(terms.terms, slopes, strict=True):
            if term.branch.has_norm:
                found += [np.asarray(term.branch.beta), -term.branch.running_mean * t]
            if term.branch.before is not None:
                found.append(term.branch.before * t)
        return found or [np.zeros(len(slopes[0]))]

    def _differs(self, parts: list[Array], got: Array, stored: str) -> Array:
        if not parts:
            return np.asarray(got != 0)
        total, size = sum(parts[1:], start=parts[0]), sum(map(np.abs, parts[1:]), abs(parts[0]))
        room = _COMPUTED_ERROR[stored] * size
        low, high = (narrow(total + s * room, stored, self.direction) for s in (-1, 1))
        tiny = FLUSH if stored == "fp32" else 0.0
        return np.asarray(~((got >= low - tiny) & (got <= high + tiny)))

    @property
    def in_words(self) -> str:
        """The conversion in a sentence."""
        if self.stored[0] == "fp64":
            return "every tap is the exact fusion to within the rounding of float64 operations"
        return (
            f"every tap is the exact fusion, rounded {IN_WORDS[self.direction]} to "
            f"{_stored(self.stored)}"
        )

    @property
    def smallest(self) -> str:
        """The smallest error that would have been seen."""
        if self.stored[0] == "fp64":
            return f"{2 * _FLOAT64_ERROR:.1g} of what a tap or a bias is summed from"
        return f"one ulp of {FORMAT_NAMES[self.stored[0]]} in any tap ({_relative(self.stored)})"


class Simulated(NamedTuple):
    """Fused in float32, the file's own format; `steps` is by how many ulps the file's slopes err.

    `added` or `biases` is None where the file does not settle how sums, or biases, are formed.
    """

    stored: tuple[str, str]
    arithmetic: Arithmetic
    order: Order
    added: Sum | None
    biases: Settled | None
    steps: int = 0

    @property
    def roundings(self) -> float:
        """Roundings that a number may have met."""
        return ROUNDINGS

    @property
    def units(self) -> tuple[float, float]:
        """Unit roundoffs of weights and biases."""
        return UNITS[self.stored[0]], UNITS[self.stored[1]]

    def check(self, terms: Terms, got: FusedConv) -> Odd:
        """Which numbers this arithmetic does not give, whatever the channels' slopes are."""
        a = self.arithmetic
        shared = parameters(terms, self.order, a)
        odd = self._odd_taps(terms, got, shared)
        rows = np.flatnonzero(odd.any(axis=(1, 2, 3)))
        if odd.mean() > _NOT_THIS:
            few = rows[:_FEW_ROWS]
            self._fit(terms, got, few, shared, odd)
            if odd[few].mean() > _NOT_THIS:
                return Odd(odd, np.zeros(len(odd), bool))
            rows = rows[_FEW_ROWS:]
        self._fit(terms, got, rows, shared, odd)
        return Odd(odd, self._odd_bias(terms, got, shared))

    def _fit(
        self, terms: Terms, got: FusedConv, rows: Array, shared: list[Array | None], odd: Array
    ) -> None:
        """Fit the slopes of some rows: `shared` and `odd` are changed."""
        if not len(rows):
            return
        some, kernel = terms.rows(rows), FusedConv(got.weight[rows], got.bias[rows])
        best = self._fitted(some, kernel, [s if s is None else s[rows] for s in shared])
        for whole, part in zip(shared, best, strict=True):
            if whole is not None:
                whole[rows] = part
        odd[rows] = self._odd_taps(some, kernel, best)

    def _odd_taps(self, terms: Terms, got: FusedConv, shared: list[Array | None]) -> Array:
        odd = np.zeros(got.weight.shape, bool)
        for tap in terms.taps:
            if len(terms.on(tap)) > 1 and self.added is None:
                continue
            how = self.added or Sum(tuple(range(len(terms.terms))))
            want = tap_predicted(terms, tap, self.order, how, shared, self.arithmetic)
            odd[:, :, tap[0], tap[1]] = differs(tap_of(got, tap), want)
        return odd

    def _fitted(
        self, terms: Terms, got: FusedConv, shared: list[Array | None]
    ) -> list[Array | None]:
        """The channels' slopes, moved by the few ulps that leave the fewest odd taps."""
        best = list(shared)
        left = self._odd_taps(terms, got, best).sum(axis=(1, 2, 3))
        for number, start in enumerate(shared):
            if start is None:
                continue
            owns = any(list(terms.on(tap)) == [number] for tap in terms.alone)
            least = _TOGETHER * self._seen_in(terms, number)
            gained = np.zeros(len(left), int)
            moved: Array = start
            for step in _near(_MOST_STEPS if owns else self.steps + 1):
                slope = stepped(start, step)
                tried = [slope if n == number else s for n, s in enumerate(best)]
                gain = left - self._odd_taps(terms, got, tried).sum(axis=(1, 2, 3))
                better = (gain > gained) & (gain >= least)
                moved = np.where(better, slope, moved)
                gained = np.where(better, gain, gained)
            best[number] = moved
            left = left - gained
        return best

    @staticmethod
    def _seen_in(terms: Terms, number: int) -> Array:
        """How many taps of each channel a term gives something to, (O,)."""
        raw = [terms.on(tap)[number] for tap in terms.taps if number in terms.on(tap)]
        return np.asarray(sum((r != 0).sum(axis=1) for r in raw))

    def _odd_bias(self, terms: Terms, got: FusedConv, fitted: list[Array | None]) -> Array:
        if self.biases is None:
            return np.zeros(len(got.bias), bool)
        a, (shift, order, known) = self.arithmetic, self.biases
        shared = fitted if shift.order == self.order else parameters(terms, shift.order, a)
        odd = differs(got.bias, added_parts(shift_parts(terms, shift, shared, a), order, a))
        rows = np.flatnonzero(odd)
        if len(rows) and terms.bias is None:
            some, bias = terms.rows(rows), got.bias[rows]
            start = [s if s is None else s[rows] for s in shared]
            reach = self.steps + 1 if len(start) <= _FEW_ROOTS else 1
            for steps in product((0, *_near(reach)), repeat=len(start)):
                moved = [
                    s if s is None else stepped(s, k) for s, k in zip(start, steps, strict=True)
                ]
                want = added_parts(shift_parts(some, shift, moved, a), order, a)
                odd[rows] &= differs(bias, want)
            if len(terms.terms) not in known:
                odd[rows] &= beyond(some, bias, a)
        return odd

    @property
    def in_words(self) -> str:
        """The conversion in a sentence."""
        a = self.arithmetic
        said = [
            "every tap is reproduced bit for bit by a fusion in float32 that"
            f" rounds {IN_WORDS[a.direction]} and forms {self.order.in_words}"
        ]
        if self.added is not None and (self.added != Sum(tuple(range(len(self.added.order))))):
            said.append(self.added.in_words)
        return ", ".join(said)

    @property
    def smallest(self) -> str:
        """The smallest error that would have been seen."""
        ulp = (
            f"one ulp of {FORMAT_NAMES[self.stored[0]]} in a tap ({_relative(self.stored)}), and"
            " what an ulp of a branch's slope, or another order where the file does not settle it,"
            " makes of a sum or a bias"
        )
        unsettled = [
            *(["centre taps"] if self.added is None else []),
            *(["biases"] if self.biases is None else []),
        ]
        if not unsettled:
            return ulp
        rest = ROUNDINGS * UNITS["fp32"]
        return f"{ulp}; {rest:.1g} of what they are summed from in {' and '.join(unsettled)}"


class Unsettled(NamedTuple):
    """Some order of operations that is not among ours, or a format that was asked for.

    A tap that one branch makes may have met `more` roundings than the two that follow its slope.
    """

    stored: tuple[str, str]
    roundings: float = ROUNDINGS
    more: int = 0

    @property
    def units(self) -> tuple[float, float]:
        """Unit roundoffs of weights and biases."""
        return UNITS[self.stored[0]], UNITS[self.stored[1]]

    def check(self, terms: Terms, got: FusedConv) -> Odd:
        """Which taps no slope of their channel explains, two directed roundings allowed."""
        none = np.zeros(len(got.bias), bool)
        return Odd(inconsistent(terms, got, self.stored[0], self.more), none)

    @property
    def in_words(self) -> str:
        """The conversion in a sentence."""
        return "every tap is the exact fusion to within the rounding of one conversion"

    @property
    def smallest(self) -> str:
        """The smallest error that would have been seen."""
        return (
            f"{4 * (2 + self.more) * self.units[0]:.1g} of a tap that one branch makes,"
            f" {self.roundings * self.units[0]:.1g} of what a sum or a bias is made from"
        )


Conversion = Exact | Simulated | Unsettled


def _near(most: int) -> Iterator[int]:
    """1, -1, 2, -2, ..."""
    for size in range(1, most + 1):
        yield from (size, -size)


def _stored(stored: tuple[str, str]) -> str:
    weight, bias = (FORMAT_NAMES[name] for name in stored)
    return weight if weight == bias else f"{weight} (biases {bias})"


def _relative(stored: tuple[str, str]) -> str:
    unit = UNITS[stored[0]]
    return f"{unit:.1g} to {2 * unit:.1g} of it"
