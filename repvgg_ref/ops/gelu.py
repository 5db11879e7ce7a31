"""GELU: what is weighed by the probability that a normal number is smaller.

``y = x Phi(x) = x / 2 (1 + erf(x / sqrt 2))`` (Hendrycks & Gimpel, arXiv 1606.08415, section 2),
not the approximation by tanh. NumPy has no erf; SciPy has, and CuPy.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, array_module, refuse_exact
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.half import rounds_half_once


class GeluCache(NamedTuple):
    """The input and Phi of it."""

    x: Array
    phi: Array


@rounds_half_once
def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """``y = x Phi(x)``; NaN stays NaN.

    Parameters
    ----------
    x : array of any shape, floating

    Returns
    -------
    y : array, shape and dtype of `x`
    cache : for `gelu_backward`

    Raises
    ------
    InexactError
        If `x` holds exact rationals.
    """
    phi = normal_cdf(x)
    return x * phi, GeluCache(x, phi)


@rounds_half_once
def gelu_backward(grad_y: Array, cache: GeluCache) -> Array:
    """Gradient with respect to ``x``: ``grad_y (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi))``.

    Parameters
    ----------
    grad_y : array, shape and dtype of ``y``
    cache : from `gelu_forward`

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    require_equal("gelu", "grad_y.shape", grad_y.shape, "y.shape", cache.x.shape)
    xp, x = array_module(cache.x), cache.x
    density = xp.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    grad_x: Array = (grad_y * (cache.phi + x * density)).astype(x.dtype)
    return grad_x


def normal_cdf(x: Array) -> Array:
    """``Phi(x) = erfc(-x / sqrt 2) / 2`` in float64, without cancellation on the left."""
    refuse_exact("gelu", x, "the exponential of a rational is irrational")
    library = "scipy" if array_module(x) is np else "cupyx.scipy"
    special = import_module(f"{library}.special")  # at its first use: a tenth of a second
    phi: Array = (special.erfc(x.astype(np.float64) / -math.sqrt(2)) / 2).astype(x.dtype)
    return phi
