"""The taps of a fused kernel that floats cannot decide, as exact rationals.

A file can be made so that every tap lies on a rounding boundary. What a row's taps have in common,
their scales, is therefore computed once, and the taps themselves in integers, many at a time.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.form import Form, Pair
from repvgg_ref.blocks.run import Linear, Reader
from repvgg_ref.exact.rounding import Exact, Ratios, sums_of_products

_MANY = 1 / 8  # of the taps at an offset; in float64 it is all of them


class Exactly:
    """The exact kernel and bias of some output channels, computed where they are asked for.

    Parameters
    ----------
    linear : Linear
    read : Reader
        Of exact arrays.
    rows : slice
        The output channels, whole groups or some of one.
    form : Form
        The same in float64.
    """

    def __init__(self, linear: Linear, read: Reader, rows: slice, form: Form) -> None:
        self._linear, self._read, self._rows, self._form = linear, read, rows, form
        self._scales: list[dict[int, Fraction]] = [{} for _ in form.terms]
        self._biases: dict[int, Fraction] = {}
        self._whole: Form | None = None

    def scales(self, term: int) -> list[Fraction]:
        """The scales of a stored kernel's rows."""
        count = len(self._form.bias)
        self._need(np.arange(count))
        return [self._scales[term][row] for row in range(count)]

    def at(self, offset: Pair) -> Exact:
        """The taps at one offset, by (row, channel)."""
        taps = [term.lattice.tap(offset) for term in self._form.terms]
        there = [(place, tap) for place, tap in enumerate(taps) if tap is not None]

        def exact(where: tuple[Array, ...]) -> Ratios:
            row, channel = where
            if any(self._form.terms[place].size is not None for place, _ in there):
                return self._computed(row, channel, offset)
            self._need(row)
            terms = [
                (self._form.terms[place].kernel[row, channel, tap[0], tap[1]], self._scales[place])
                for place, tap in there
            ]
            return sums_of_products(terms, row)

        return exact

    def products(self, place: int) -> Exact:
        """The taps that a stored kernel makes alone, by their index in it."""

        def exact(where: tuple[Array, ...]) -> Ratios:
            self._need(where[0])
            kernel = self._form.terms[place].kernel
            return sums_of_products([(kernel[where], self._scales[place])], where[0])

        return exact

    def bias(self, where: tuple[Array, ...]) -> Ratios:
        """Biases, by row."""
        self._need(where[0])
        found = [self._biases[int(row)] for row in where[0]]
        return Ratios([each.numerator for each in found], [each.denominator for each in found])

    def _need(self, rows: Array) -> None:
        """Compute what belongs to these rows: of one row alone, or of all at once."""
        missing = {int(row) for row in rows} - self._biases.keys()
        if not missing:
            return
        first, stop = (min(missing), max(missing) + 1) if len(missing) == 1 else (0, None)
        start = self._rows.start
        part = slice(start + first, self._rows.stop if stop is None else start + stop)
        # Scales and biases are the same for any input.
        narrow = self._linear.form(self._read, part, slice(0, 1))
        for at, bias in enumerate(narrow.bias):
            self._biases[first + at] = bias
        for known, term in zip(self._scales, narrow.terms, strict=True):
            known.update({first + at: scale for at, scale in enumerate(term.scale)})

    def _computed(self, row: Array, channel: Array, offset: Pair) -> Ratios:
        """Taps of convolutions one behind the other, each in a form of its own; many in one."""
        taps_there = self._form.terms[0].kernel[..., 0, 0].size
        if len(row) > _MANY * taps_there or self._whole is not None:
            if self._whole is None:
                self._whole = self._linear.form(self._read, self._rows)
            taps = self._whole.at(offset)[row, channel]
            return Ratios([each.numerator for each in taps], [each.denominator for each in taps])
        found = []
        for r, c in zip(row.tolist(), channel.tolist(), strict=True):
            at = self._rows.start + r
            form = self._linear.form(self._read, slice(at, at + 1), slice(c, c + 1))
            found.append(form.at(offset)[0, 0])
        return Ratios([each.numerator for each in found], [each.denominator for each in found])
