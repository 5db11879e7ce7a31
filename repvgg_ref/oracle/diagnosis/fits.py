"""How a candidate's outputs follow from what stands in front of a layer's activation, to rounding.

Each fit says where it holds. Its numbers are those of the candidate's own outputs: of the layer, of
each channel, or, behind squeeze-and-excitation, the gate of each channel and image. A gate is
positive and at most 1, or it is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from repvgg_ref.arrays import Array

Act = Callable[[Array], Array]

LEAST_OUTPUTS = 24  # that show anything
_CURVATURE = 0.5  # of a function at most, both sides in deviations; ELU, softplus, GELU bend less
_CHANCE = 0.003  # of a wrong value lying between its neighbours
_ROUNDS = 3  # of least squares, each without what is far off
_FEWEST = 6  # active outputs of a channel from which a factor and a constant are taken
_RESEMBLANCE = 0.5  # a correlation: chance alone gives some 0.4 to forty outputs
_LARGEST_GATE = 1 + 1e-4  # a sigmoid's, its rounding and its estimate


class Shown:
    """A candidate's outputs at some pixels.

    Parameters
    ----------
    y_hat : array (N, O, P)
    tolerance : array (N, O, P)
        The largest error that is rounding.
    """

    def __init__(self, y_hat: Array, tolerance: Array) -> None:
        self.seen = np.isfinite(y_hat) & (y_hat != 0)
        self.y_hat = np.where(self.seen, y_hat, 0.0)
        self.active = self.seen & (self.y_hat > 0)
        self.count = float(self.seen.sum())
        self.tolerance = tolerance

    def share(self, right: Array) -> float:
        """Of the outputs that are not 0, those that are right."""
        return float((right & self.seen).sum() / max(self.count, 1.0))

    def is_right(self, y: Array) -> Array:
        """Where the candidate has these values."""
        return np.asarray(np.abs(self.y_hat - y) <= self.tolerance)

    def order(self, y: Array) -> Array:
        """(O,): the channel of `y` that each of the candidate's goes with best."""
        return np.asarray(np.argmax(self._directions @ _directions(y).T, axis=1))

    def resembles(self, z: Array) -> bool:
        """Whether half of the channels go with a channel of `z`, rising or falling."""
        best = np.abs(self._directions @ _directions(z).T).max(axis=1)
        return bool(np.median(best) >= _RESEMBLANCE)

    @cached_property
    def _directions(self) -> Array:
        return _directions(self.y_hat)

    def sums(self, z: Array, terms: Sequence[Array], act: Act) -> Array:
        """``act(z + a sum of terms)`` with one number for each term and the whole layer."""
        found = _robust_sum(self.y_hat - z, terms, self.active)
        return np.zeros(z.shape, bool) if found is None else self.is_right(act(z + found))

    def affine(self, z: Array, act: Act) -> Array:
        """``act(a z + b)``, a and b for each channel."""
        a, b, known = _lines(*map(_by_channel, (z, self.y_hat, self.active)))
        return np.asarray(self.is_right(act(a * z + b)) & known)

    def function(self, z: Array, gates: Array | float = 1.0) -> Array:
        """``f(z)`` times a gate: each output lies between those whose z is next to its own."""
        size = np.broadcast_to(gates, z.shape)
        told = size > 0
        size = np.where(told, size, 1.0)
        flat, y = z.ravel(), np.where(told, self.y_hat / size, 0.0).ravel()
        order = np.argsort(flat, kind="stable")
        flat, y, noise = flat[order], y[order], (self.tolerance / size).ravel()[order]
        width = flat[2:] - flat[:-2]
        at = np.where(width > 0, (flat[1:-1] - flat[:-2]) / np.maximum(width, 1e-300), 0.5)
        between = y[:-2] + at * (y[2:] - y[:-2])
        noise = noise[1:-1] + np.maximum(noise[2:], noise[:-2])
        deviation = max(float(z[self.seen].std()), 1e-300)
        bent = _CURVATURE * np.minimum(width / deviation, 1.0) ** 2  # more is too much anyway
        good = np.abs(y[1:-1] - between) <= noise + bent * float(y.std())
        right = np.zeros(flat.shape, bool)
        right[order[1:-1]] = good & (bent <= _CHANCE)
        return right.reshape(z.shape) & told

    def gates(self, y: Array) -> Array:
        """(N, O, 1): by what most of each image's and channel's outputs are times `y`; 0: none."""
        told = self.seen & (y != 0)
        ratios = np.sort(np.where(told, self.y_hat, np.nan) / np.where(told, y, 1.0), axis=2)
        middle = np.maximum(told.sum(axis=2, keepdims=True) - 1, 0) // 2  # NaN comes last
        found = np.take_along_axis(ratios, middle, axis=2)
        return np.where((found > 0) & (found <= _LARGEST_GATE), found, 0.0)

    def gated(self, y: Array) -> Array:
        """`y` times a gate of each channel and image."""
        return self.is_right(y * self.gates(y))

    def shifts(self, z: Array) -> Array:
        """(N, O, 1): what is added to z in front of a gate, NaN where that is not told."""
        a, b, known = _lines(z, self.y_hat, self.active)
        return np.where(known & (a > 0), b / np.where(a > 0, a, 1.0), np.nan)

    def gated_sums(self, z: Array, terms: Sequence[Array], act: Act, shifts: Array) -> Array:
        """``act(z + a sum of terms)``, one number a term, times a gate."""
        told = np.isfinite(shifts)
        found = _robust_sum(np.where(told, shifts, 0.0), terms, told)
        return np.zeros(z.shape, bool) if found is None else self.gated(act(z + found))

    def gated_affine(self, z: Array, act: Act, shifts: Array) -> Array:
        """``act(a z + b)``, a and b for each channel, times a gate."""
        middle = _median(shifts.T)[0]  # (N, O, 1) -> (1, O, N) -> (O, 1)
        told = np.isfinite(middle)
        return np.asarray(self.gated(act(z + np.where(told, middle, 0.0))) & told)


def _directions(values: Array) -> Array:
    """(O, N * P): each channel less its mean, of length 1; their products are correlations."""
    flat = values.transpose(1, 0, 2).reshape(values.shape[1], -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.sqrt((flat * flat).sum(axis=1, keepdims=True)), 1e-300))


def _by_channel(values: Array) -> Array:
    """(N, O, P) -> (1, O, N * P)."""
    return np.asarray(values.transpose(1, 0, 2).reshape(1, values.shape[1], -1))


def _lines(z: Array, y: Array, on: Array) -> tuple[Array, Array, Array]:
    """Slopes, levels and whether they are known, (N, O, 1): y over z where `on`, row by row."""
    chosen = on
    a = b = np.zeros((*z.shape[:2], 1))
    for _ in range(_ROUNDS):
        n = np.maximum(chosen.sum(axis=2, keepdims=True), 1)
        mean_z, mean_y = (np.where(chosen, v, 0.0).sum(axis=2, keepdims=True) / n for v in (z, y))
        dz = np.where(chosen, z - mean_z, 0.0)
        power = (dz * dz).sum(axis=2, keepdims=True)
        a = (dz * y).sum(axis=2, keepdims=True) / np.maximum(power, 1e-300)
        b = mean_y - a * mean_z
        off = np.where(on, np.abs(y - a * z - b), np.nan)
        chosen = on & (off <= 3 * _median(np.where(chosen, off, np.nan)))
    return a, b, chosen.sum(axis=2, keepdims=True) >= _FEWEST


def _median(values: Array) -> Array:
    """Along the last axis, without NaN; NaN where there is nothing."""
    count = np.isfinite(values).sum(axis=-1, keepdims=True)
    return np.take_along_axis(np.sort(values, axis=-1), np.maximum(count - 1, 0) // 2, axis=-1)


def _robust_sum(wanted: Array, terms: Sequence[Array], on: Array) -> Array | None:
    """The sum of terms, one number each, that most of `wanted` is where `on`; None of too few."""
    wide = np.stack([np.broadcast_to(term, wanted.shape).ravel() for term in terms])
    wide = wide / np.maximum(np.sqrt((wide * wide).sum(axis=1)), 1e-300)[:, None]
    flat, lit = wanted.ravel(), on.ravel()
    chosen, fitted = lit, flat
    for _ in range(_ROUNDS):
        if chosen.sum() < min(LEAST_OUTPUTS, lit.size / 2):
            return None
        weighted = wide * chosen
        numbers = np.linalg.lstsq(weighted @ wide.T, weighted @ flat, rcond=1e-13)[0]
        fitted = numbers @ wide
        off = np.abs(flat - fitted)
        chosen = lit & (off <= 3 * np.median(off[chosen]))
    return np.asarray(fitted.reshape(wanted.shape))
