"""Independent rounding: how large a layer's errors are where nothing is wrong.

A right layer's error has variance ``u**2 (a E**2 + b y**2 + c s**2)``: rounding of products is
relative to the products' energy E**2, rounding of the result to the result, and rounding of partial
sums, in one long chain of additions, to what they grow to, s = y - bias. In every arithmetic
without tiles a is 0.02 to 5 and b is 0.17 to 2; c is next to 0 but for chains, where it is K / 40
(measured: tests/studies/NOTES-oracle.md).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.planes import Planes
from repvgg_ref.oracle.arithmetic.sample import Sample, sums_by_image

# One correct rounding of the result errs by u**2 / 6 on average, over all mantissas.
_LEAST = np.array([0.005, 0.05, 0.0])  # a, b, c
_START = np.array([1.0, 0.2, 0.2])
_ROUNDS = 3
_SHARED, _FEWEST = 4, 128  # outputs of one gate, and of all such: fewer tell no noise
_WITH_SHARED = 4.0  # of the largest noise: twice the deviation, what a channel's outputs share
_CAP = 9.0  # medians: a squared residual beyond is a fault's, not noise


def noise_variance(sample: Sample, unit: float, most: float = np.inf) -> Array:
    """The variance (O, P) of independent errors, a, b and c fitted to the residual.

    Errors of gates are the same all over an image's channel: they are no part of it, unless so few
    outputs share a gate that the two cannot be told apart. `most` is the largest mean of a right
    layer, see `noise_unit`. Where all of the residual is several times that, it is `most` so many
    times, or what is left beside scales and biases if that is more: else a fault of these hides in
    the noise that it is taken for.
    """
    told, lost = _beside_gates(sample, unit) if sample.gated else (sample, 1.0)
    found = _variance(sample, lost * fit_noise(told, unit), unit)
    size, most = _size(found, sample, unit), _WITH_SHARED * most
    if size <= most:
        return found
    left = _variance(sample, fit_noise(_beside_planes(sample, unit), unit), unit)
    return found * min(1.0, max(most, _size(left, sample, unit)) / size)


def _size(variance: Array, sample: Sample, unit: float) -> float:
    """Its mean over the active outputs, in units of direct sums' squared errors; 0 for none."""
    on = sample.active
    return float((variance[on] / noise_unit(sample, unit)[on]).mean()) if on.any() else 0.0


def noise_unit(sample: Sample, unit: float) -> Array:
    """What direct sums' squared errors are told in, (O, P)."""
    return np.asarray(unit**2 * (sample.energy + 0.3 * sample.y**2) + 1e-300)


def _variance(sample: Sample, coefficients: Array, unit: float) -> Array:
    a, b, c = coefficients
    sums = (sample.y - sample.bias[:, None]) ** 2
    return np.asarray(unit**2 * (a * sample.energy + b * sample.y**2 + c * sums))


def _beside_planes(sample: Sample, unit: float) -> Sample:
    """A sample less what scales and biases explain, where that leaves anything."""
    on = sample.active
    planes = Planes(sample, np.where(on, 1 / noise_unit(sample, unit), 0.0))
    left = planes.freedom
    enough = left > 0
    if not enough.any():
        return sample
    widened = np.sqrt(on.sum(axis=1) / np.where(enough, left, np.inf))
    residual = planes.without_plane(sample.residual) * widened[:, None]
    return replace(sample, residual=residual, active=on & enough[:, None])


def _beside_gates(sample: Sample, unit: float) -> tuple[Sample, float]:
    """A sample less what gates explain, and by how much that makes its squares too small."""
    shared = sums_by_image(sample.images, sample.active)
    told = sample.active & (shared >= _SHARED)[:, sample.images]
    outputs = int(told.sum())
    if outputs < _FEWEST:
        return sample, 1.0
    left = sample.without_gate(np.where(sample.active, 1 / noise_unit(sample, unit), 0.0))
    gates = int((shared >= _SHARED).sum())
    return replace(sample, residual=left, active=told), outputs / (outputs - gates)


def fit_noise(sample: Sample, unit: float) -> Array:
    """The coefficients a, b, c, by non-negative least squares on squared residuals."""
    on = sample.active
    squares = (sample.residual[on] / unit) ** 2
    if not len(squares):
        return _START
    sums = (sample.y - sample.bias[:, None])[on] ** 2
    terms = np.stack([sample.energy[on], sample.y[on] ** 2, sums], axis=1)
    found = _START
    for _ in range(_ROUNDS):
        v = terms @ found + 1e-300
        ratio = squares / v
        capped = np.minimum(ratio, _CAP * max(float(np.median(ratio)), 1e-12))
        found = np.maximum(_non_negative(terms / v[:, None], capped), _LEAST)
    return found


def _non_negative(matrix: Array, target: Array) -> Array:
    """Least squares with no coefficient below 0: of all that are 0 for some, what leaves least."""
    gram, cross = matrix.T @ matrix, matrix.T @ target
    size = len(gram)
    gram += 1e-9 * np.trace(gram) * np.eye(size)
    plain = np.linalg.solve(gram, cross)
    if (plain >= 0).all():  # nothing leaves less
        return np.asarray(plain)
    best, gained = np.zeros(size), 0.0
    for count in range(1, size):
        for chosen in map(list, combinations(range(size), count)):
            found = np.zeros(size)
            found[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], cross[chosen])
            if (found >= 0).all() and found @ cross > gained:  # solved: what the fit explains
                best, gained = found, float(found @ cross)
    return best
