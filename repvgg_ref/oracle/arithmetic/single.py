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
    """What errors of taps and branches make of sums over outputs, ``sum_p outputs[o, p] x_k[p]``.

    Attributes
    ----------
    taps : (O, K) array, float32
        ``M_k`` times these, in units of `size`.
    size : (O, 1) array, float64
    branches : (B, O) array
        ``sum_p outputs[o, p] t_b z_b[p]``.
    """

    taps: Array
    size: Array
    branches: Array

    def dot(self, other: Along) -> Array:
        """``sum_k M_k**2 ..`` of products of two such sums, and those of branches, (O,).

        With itself a variance: of errors of the taps, each in proportion to its magnitude and
        independent of others, and of the scales of branches.
        """
        taps = np.einsum("ok,ok->o", self.taps, other.taps) * (self.size * other.size)[:, 0]
        return np.asarray(taps + (self.branches * other.branches).sum(axis=0))


@dataclass(frozen=True)
class Single:
    """Inputs of taps (G, K, P) and magnitudes of taps (O, K), float64, for such products."""

    columns: Array
    magnitude: Array

    def along(self, outputs: Array, there: Array | None = None) -> tuple[Array, Array]:
        """``sum_p outputs[o, p] x_k[p]``, in units of the size (O, 1) and of a tap's largest input.

        Parameters
        ----------
        outputs : (O, P) array
        there : (P,) array of bool, optional
            The only outputs that count, if not all; then `outputs` holds them alone.
        """
        rows, size = scaled(outputs)
        columns = self._columns if there is None else self._columns[:, :, there]
        return grouped(rows, columns.transpose(0, 2, 1)), size

    def of_squares(self, outputs: Array) -> tuple[Array, Array]:
        """``sum_p outputs[o, p] x_k[p]**2``, (O, K), in units of squares, and the size, (O, 1)."""
        rows, size = scaled(outputs)
        return grouped(rows, self._squares.transpose(0, 2, 1)), size

    def weighed(self, taps: Array, size: Array) -> tuple[Array, Array]:
        """What `along` gave times the magnitude of each tap, in place, and its size."""
        magnitude, of_magnitude = self._magnitude
        taps *= magnitude
        return taps, size * of_magnitude

    def jolted(self, rng: np.random.Generator) -> Array:
        """What outputs change by if each tap errs by its magnitude, at random, (O, P)."""
        magnitude, of_magnitude = self._magnitude
        taps = rng.standard_normal(magnitude.shape, np.float32)
        taps *= magnitude
        return grouped(taps, self._columns) * of_magnitude

    @cached_property
    def _sizes(self) -> Array:
        """The largest input of each tap, (G, K), float64; 1 where all are 0."""
        low, high = self.columns.min(axis=2, initial=0.0), self.columns.max(axis=2, initial=0.0)
        most = np.maximum(high, -low)
        return np.where(most > 0, most, 1.0)

    @cached_property
    def _columns(self) -> Array:
        return np.asarray((self.columns / self._sizes[:, :, None]).astype(np.float32))

    @cached_property
    def _squares(self) -> Array:
        return np.asarray(np.square(self._columns))

    @cached_property
    def _magnitude(self) -> tuple[Array, Array]:
        """Of each tap for inputs as they are in `_columns`."""
        of_group = self.magnitude.reshape(len(self.columns), -1, self.magnitude.shape[1])
        magnitude, size = scaled((of_group * self._sizes[:, None]).reshape(self.magnitude.shape))
        return magnitude, size


def grouped(rows: Array, columns: Array) -> Array:
    """(O, A) times (G, A, B), each group's rows with its own columns: (O, B)."""
    y = rows.reshape(len(columns), -1, rows.shape[-1]) @ columns
    return np.asarray(y.reshape(len(rows), -1))


def scaled(values: Array) -> tuple[Array, Array]:
    """Values (O, A) as float32, and the sizes (O, 1) that each row was divided by, float64."""
    size = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    size = np.where(size > 0, size, 1.0)
    return (values / size).astype(np.float32), size
