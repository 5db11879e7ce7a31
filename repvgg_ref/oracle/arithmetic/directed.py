"""Directed rounding: truncation and its kin, a few coefficients for the whole port.

Rounding toward zero or upward is right, too, and far from independent: it adds up. What it does to
an output is computable but for one number, the average part of an ulp that a rounding takes, 1/2
in theory. The directions, all of them (O, P):

    result       -ulp(y)                        results cut
    upward       sum_k x_k ulp(w_k)             weights rounded up
    weights      -sum_k x_k sign(w_k) ulp(w_k)  weights cut
    chopped-s    -1.44 u sum_k m_k w_k x_k      every partial sum cut, s products added at once
    products     -1.44 u m y                    every partial sum cut, in no known order

1.44 is 1/ln 2: ulp(z) over z, averaged over mantissas. m_k counts the additions from the k-th on;
where x is 0 nothing is added, so nothing is cut. Products are summed in the order of the kernel, or
("-last") with channels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.noise import noise_variance
from repvgg_ref.oracle.arithmetic.sample import Sample, spread_channels
from repvgg_ref.oracle.arithmetic.single import grouped

_CHOPPED = {
    f"chopped-{step}{order}": (step, bool(order)) for order in ("", "-last") for step in (1, 4, 8)
}
DIRECTIONS = ("result", "upward", "weights", *_CHOPPED, "products")
_MOST = 0.6  # of an ulp, on average: 1/2 and what a fit may be off by
_OUTPUTS = 2000  # of a layer: none counts more than others
_CHANNELS = 64
_ROUNDS = 4
_MOST_EXCHANGES = 10  # of limits, for each coefficient
_NOTHING = 1e-12  # relative: a slope that leads nowhere
_FEWEST = 3  # layers: fewer cannot tell what they have in common from a fault of one
_FAR = 4.0  # medians of all layers: a layer that fits this badly takes no part
_EXPLAINS = 0.1  # of a layer's squared errors: in two layers of three, or it is one layer's fault


class Directed(NamedTuple):
    """The coefficients of `DIRECTIONS`; 0 for a port that rounds to nearest."""

    coefficients: Array

    @property
    def is_any(self) -> bool:
        """Whether anything is directed."""
        return bool((np.abs(self.coefficients) > 0).any())

    @property
    def is_at_limit(self) -> bool:
        """Whether several coefficients are as large as they may be: something else is at work."""
        return int((np.abs(self.coefficients) > 0.99 * _MOST).sum()) > 1

    @property
    def chopped(self) -> float:
        """How much of an ulp partial sums lose, on average."""
        shares = zip(self.coefficients, DIRECTIONS, strict=True)
        return float(sum(max(0.0, c) for c, name in shares if name in _CHOPPED))

    def drift(self, sample: Sample, unit: float) -> Array | float:
        """What it makes of a layer's outputs, (O, P)."""
        if not self.is_any:
            return 0.0
        total: Array | float = 0.0
        made = _Maker(sample, unit)
        for coefficient, name in zip(self.coefficients, DIRECTIONS, strict=True):
            if coefficient:
                total = total + coefficient * made.direction(name)
        return total


def fit_directed(
    samples: Mapping[str, Sample], unit: float, *, pool: Executor | None = None
) -> Directed:
    """Fit the coefficients by bounded least squares over all layers at once.

    Layers that the fit leaves far more wrong than others, a faulty one among them, are dropped and
    the fit repeated.
    """
    judged = {name: sample for name, sample in samples.items() if sample.name != "linear"}
    each = map if pool is None else pool.map
    made = each(lambda sample: _part(sample, unit), judged.values())
    parts = dict(zip(judged, made, strict=True))
    kept = [name for name, part in parts.items() if len(part[1])]
    coefficients = np.zeros(len(DIRECTIONS))
    if len(kept) < _FEWEST:
        return Directed(coefficients)
    chosen = kept
    for _ in range(_ROUNDS):
        matrix = np.concatenate([parts[name][0] for name in chosen])
        target = np.concatenate([parts[name][1] for name in chosen])
        coefficients = _bounded(matrix, target)
        left = {n: _drift_left(*parts[n], coefficients) for n in kept}
        limit = _FAR * max(float(np.median(list(left.values()))), 1.0)
        now = [name for name in kept if left[name] <= limit]
        if now == chosen or not now:
            break
        chosen = now
    better = sum(_explained(*parts[name], coefficients) > _EXPLAINS for name in kept)
    return Directed(coefficients if better * 3 >= len(kept) * 2 else 0.0 * coefficients)


def _explained(matrix: Array, target: Array, coefficients: Array) -> float:
    """Part of a layer's squared errors."""
    left = target - matrix @ coefficients
    return 1 - float(left @ left) / max(float(target @ target), 1e-300)


def _bounded(matrix: Array, target: Array) -> Array:
    """Least squares with no coefficient beyond `_MOST`; columns are brought to one size, 1, first.

    Source: Stark & Parker, "Bounded-variable least squares", Computational Statistics 10 (1995).
    """
    size = np.sqrt((matrix**2).sum(axis=0))
    size = np.where(size > 0, size, 1.0)
    gram, cross = (matrix / size).T @ (matrix / size), (matrix / size).T @ target
    gram += 1e-9 * np.eye(len(gram))
    most = _MOST * size
    x, held = np.zeros(len(gram)), np.zeros(len(gram), bool)
    for _ in range(_MOST_EXCHANGES * len(gram)):
        free = np.flatnonzero(~held)
        goal = x.copy()
        rest = cross[free] - gram[np.ix_(free, held)] @ x[held]
        goal[free] = np.linalg.solve(gram[np.ix_(free, free)], rest)
        beyond = np.abs(goal) > most
        beyond[held] = False
        if beyond.any():  # as far as the first limit on the way, which is kept
            room = np.where(goal > x, most - x, most + x)
            share = np.where(beyond, room / np.maximum(np.abs(goal - x), 1e-300), np.inf)
            first = int(share.argmin())
            x += share[first] * (goal - x)
            x[first] = np.copysign(most[first], goal[first])
            held[first] = True
            continue
        x = goal
        inward = np.where(held, -np.sign(x) * (cross - gram @ x), 0.0)
        if inward.max() <= _NOTHING * np.abs(cross).max():
            break
        held[int(inward.argmax())] = False
    return np.asarray(x / size)


def _drift_left(matrix: Array, target: Array, coefficients: Array) -> float:
    """By how many standard errors the mean of what is left, along the results, is off."""
    left = target - matrix @ coefficients
    along = matrix[:, 0]
    return abs(float(left @ along)) / max(float(np.sqrt((along**2).sum())), 1e-300)


def _part(sample: Sample, unit: float) -> tuple[Array, Array]:
    """Weighted directions and residuals of some active outputs of a layer: (Q, D), (Q,).

    What adds up in the outputs adds up in the pooled means, too, and turns the gates of
    squeeze-and-excitation by as much: only what no gate explains is fitted.
    """
    few = _thinned(sample)
    weight = np.where(few.active, 1 / noise_variance(few, unit), 0.0)
    made = _Maker(few, unit)
    lines = [made.direction(name) for name in DIRECTIONS] + [few.residual]
    if few.gated:
        lines = [replace(few, residual=line).without_gate(weight) for line in lines]
    *columns, target = ((line * np.sqrt(weight))[few.active] for line in lines)
    return np.stack(columns, axis=1), target


def _thinned(sample: Sample) -> Sample:
    """The same with a few of its channels and output positions."""
    few = sample.of_channels(spread_channels(len(sample.y), sample.groups, _CHANNELS))
    positions, p = max(4, _OUTPUTS // len(few.y)), sample.y.shape[1]
    if p <= positions:
        return few
    return few.at(np.unique(np.linspace(0, p - 1, positions).astype(int)))


class _Maker:
    """The directions of one layer."""

    def __init__(self, sample: Sample, unit: float) -> None:
        self.sample, self.unit = sample, unit

    def direction(self, name: str) -> Array:
        """One of `DIRECTIONS`, (O, P)."""
        sample = self.sample
        if name == "result":
            return -self._ulp(sample.y)
        if name == "upward":
            return sample.times(self._ulp(sample.weight)) + self._ulp(sample.bias)[:, None]
        if name == "weights":
            cut = np.sign(sample.weight) * self._ulp(sample.weight)
            return -sample.times(cut)
        adds = np.asarray(sample.columns != 0)  # (G, K, P)
        if name in _CHOPPED:
            counted = sample.columns * self._to_come(adds, *_CHOPPED[name])
            return -1.44 * self.unit * grouped(sample.weight, counted)
        additions = np.repeat(adds.sum(axis=1), len(sample.y) // sample.groups, axis=0)
        return -1.44 * self.unit * additions * sample.y

    def _to_come(self, adds: Array, step: int, channels_last: bool) -> Array:
        """How many additions follow each product, its own included, (G, K, P)."""
        groups, k, p = adds.shape
        taps = self.sample.kernel_size
        if channels_last:
            adds = adds.reshape(groups, -1, taps, p).transpose(0, 2, 1, 3).reshape(groups, k, p)
        steps = -(-k // step)
        padded = np.zeros((groups, steps * step, p), bool)
        padded[:, :k] = adds
        any_of: Array = np.any(padded.reshape(groups, steps, step, p), axis=2)
        later = np.cumsum(any_of[:, ::-1], axis=1)[:, ::-1]
        later = np.repeat(later, step, axis=1)[:, :k]
        if channels_last:
            later = later.reshape(groups, taps, -1, p).transpose(0, 2, 1, 3).reshape(groups, k, p)
        return np.asarray(later)

    def _ulp(self, values: Array) -> Array:
        """Spacing of the port's numbers at `values`."""
        exponent = np.frexp(np.abs(values))[1]
        return np.asarray(np.where(values != 0, np.ldexp(2 * self.unit, exponent - 1), 0.0))
