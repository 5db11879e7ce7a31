"""Independent rounding: how large a layer's errors are where nothing is wrong.

A right layer's error has variance ``u**2 (a E**2 + b y**2)``: rounding of products and of partial
sums is relative to the products' energy E**2, rounding of the result to the result. In every
arithmetic without tiles a is 0.02 to 5, or up to K / 40 in one long chain of additions, and b is
0.17 to 2 (measured: tests/studies/NOTES-oracle.md).
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample

# One correct rounding of the result errs by u**2 / 6 on average, over all mantissas.
_LEAST_OF_RESULT, _LEAST_OF_PRODUCTS = 0.05, 0.005
_ROUNDS = 3
_CAP = 9.0  # medians: a squared residual beyond is a fault's, not noise


def noise_variance(sample: Sample, unit: float) -> Array:
    """The variance (O, P) of independent errors, ``a`` and ``b`` fitted to the residual."""
    a, b = fit_noise(sample, unit)
    return np.asarray(unit**2 * (a * sample.energy + b * sample.y**2))


def fit_noise(sample: Sample, unit: float) -> tuple[float, float]:
    """A and b of the variance, by non-negative least squares on squared residuals."""
    on = sample.active
    energy, result = sample.energy[on], sample.y[on] ** 2
    squares = (sample.residual[on] / unit) ** 2
    if not len(squares):
        return 1.0, 1.0
    a, b = 1.0, 0.2
    for _ in range(_ROUNDS):
        v = a * energy + b * result + 1e-300
        ratio = squares / v
        capped = np.minimum(ratio, _CAP * max(float(np.median(ratio)), 1e-12))
        a, b = _non_negative(energy / v, result / v, capped)
        a, b = max(a, _LEAST_OF_PRODUCTS), max(b, _LEAST_OF_RESULT)
    return a, b


def _non_negative(first: Array, second: Array, target: Array) -> tuple[float, float]:
    """The least squares of ``a first + b second = target`` with a and b not below 0."""
    xx, yy, xy = (float((p * q).sum()) for p, q in ((first,) * 2, (second,) * 2, (first, second)))
    xt, yt = float((first * target).sum()), float((second * target).sum())
    determinant = xx * yy - xy * xy
    if determinant > 1e-12 * xx * yy:
        a, b = (yy * xt - xy * yt) / determinant, (xx * yt - xy * xt) / determinant
        if a >= 0 and b >= 0:
            return a, b
    alone = xt / xx if xx > 0 else 0.0, yt / yy if yy > 0 else 0.0
    return (alone[0], 0.0) if alone[0] * xt >= alone[1] * yt else (0.0, alone[1])
