"""Independent rounding: how large a layer's errors are where nothing is wrong.

A right layer's error has variance ``u**2 (a E**2 + b y**2 + c s**2)``: rounding of products is
relative to the products' energy E**2, rounding of the result to the result, and rounding of partial
sums, in one long chain of additions, to what they grow to, s = y - bias. In every arithmetic
without tiles a is 0.02 to 5 and b is 0.17 to 2; c is next to 0 but for chains, where it is K / 40
(measured: tests/studies/NOTES-oracle.md).
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample

# One correct rounding of the result errs by u**2 / 6 on average, over all mantissas.
_LEAST = np.array([0.005, 0.05, 0.0])  # a, b, c
_START = np.array([1.0, 0.2, 0.2])
_ROUNDS = 3
_CAP = 9.0  # medians: a squared residual beyond is a fault's, not noise


def noise_variance(sample: Sample, unit: float) -> Array:
    """The variance (O, P) of independent errors, a, b and c fitted to the residual."""
    a, b, c = fit_noise(sample, unit)
    sums = (sample.y - sample.bias[:, None]) ** 2
    return np.asarray(unit**2 * (a * sample.energy + b * sample.y**2 + c * sums))


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
    """Least squares with no coefficient below 0, on the normal equations: there are three."""
    gram, cross = matrix.T @ matrix, matrix.T @ target
    root = np.linalg.cholesky(gram + 1e-9 * np.trace(gram) * np.eye(len(gram)))
    found, _ = scipy.optimize.nnls(root.T, np.linalg.solve(root, cross))
    return np.asarray(found)
