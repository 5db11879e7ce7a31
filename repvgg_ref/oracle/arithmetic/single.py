"""What outputs of a layer have in common with what they see, in single precision.

Variances, and scores that are held against them, need few digits: float32 products take half the
time of float64 ones. Every tap's inputs are divided by their largest, and every channel's numbers
by theirs, so that nothing overflows, and nothing but what is next to nothing beside it underflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array


class Along(NamedTuple):
    """Sums over outputs, ``sum_p outputs[o, p] x_k[p]``; with G groups, K taps, B branches.

    Attributes
    ----------
    taps : (O, K) array, float32
        In units of `size` and of the largest input of each tap.
    size : (O, 1) array, float64
    branches : (B, O) array
        The same of each branch's own part, ``sum_p outputs[o, p] t_b z_b[p]``.
    """

    taps: Array
    size: Array
    branches: Array

    def less(self, other: Along, factor: Array) -> Along:
        """The same without `factor` (O,) times another."""
        share = (factor[:, None] * other.size / self.size).astype(np.float32)
        return Along(
            self.taps - share * other.taps, self.size, self.branches - factor * other.branches
        )

    def times(self, factor: Array) -> Along:
        """Every channel's sums times a factor, (O,)."""
        return Along(self.taps, self.size * np.abs(factor)[:, None], self.branches * factor)


@dataclass(frozen=True)
class Single:
    """Inputs of taps (G, K, P) and magnitudes of taps (O, K), float64, for such products."""

    columns: Array
    magnitude: Array

    def along(self, outputs: Array) -> tuple[Array, Array]:
        """``sum_p outputs[o, p] x_k[p]``: (O, P) -> taps and size of `Along`."""
        rows, size = scaled(outputs)
        return grouped(rows, self._columns.transpose(0, 2, 1)), size

    def along_some(self, outputs: Array, there: Array) -> tuple[Array, Array]:
        """The same over the outputs at `there` (P,), a mask, alone: (O, those) in."""
        rows, size = scaled(outputs)
        return grouped(rows, self._columns[:, :, there].transpose(0, 2, 1)), size

    def of_squares(self, outputs: Array) -> tuple[Array, Array]:
        """``sum_p outputs[o, p] x_k[p]**2``, (O, K), in units of squares, and the size, (O, 1)."""
        rows, size = scaled(outputs)
        return grouped(rows, self._squares.transpose(0, 2, 1)), size

    def met(self, taps: Array, size: Array) -> Array:
        """``sum_k (M_k taps_k)**2``, (O,)."""
        magnitude, of_magnitude = self._magnitude
        met = magnitude * taps
        return np.asarray(np.einsum("ok,ok->o", met, met) * (size * of_magnitude)[:, 0] ** 2)

    def jolted(self, rng: np.random.Generator) -> Array:
        """What outputs change by if each tap changes by its magnitude, up or down, (O, P)."""
        magnitude, of_magnitude = self._magnitude
        up = rng.integers(0, 2, magnitude.shape, np.int8)
        return grouped(np.where(up, magnitude, -magnitude), self._columns) * of_magnitude

    @cached_property
    def sizes(self) -> Array:
        """The largest input of each tap, (G, K), float64; 1 where all are 0."""
        most = np.maximum(
            self.columns.max(axis=2, initial=0.0), -self.columns.min(axis=2, initial=0.0)
        )
        return np.where(most > 0, most, 1.0)

    @cached_property
    def _columns(self) -> Array:
        return np.divide(
            self.columns, self.sizes[:, :, None], dtype=np.float32, casting="same_kind"
        )

    @cached_property
    def _squares(self) -> Array:
        return np.asarray(np.square(self._columns))

    @cached_property
    def _magnitude(self) -> tuple[Array, Array]:
        groups = len(self.columns)
        of_taps = self.magnitude.reshape(groups, -1, self.magnitude.shape[1]) * self.sizes[:, None]
        return scaled(of_taps.reshape(self.magnitude.shape))


def grouped(rows: Array, columns: Array) -> Array:
    """(O, A) times (G, A, B), each group's rows with its own columns: (O, B)."""
    y = rows.reshape(len(columns), -1, rows.shape[-1]) @ columns
    return np.asarray(y.reshape(len(rows), -1))


def scaled(values: Array) -> tuple[Array, Array]:
    """Values (O, A) as float32, and the sizes (O, 1) that each row was divided by, float64."""
    size = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    size = np.where(size > 0, size, 1.0)
    return (values / size).astype(np.float32), size
