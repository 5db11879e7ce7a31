"""GELU: what is weighed by the probability that a normal number is smaller.

``y = x Phi(x) = x / 2 (1 + erf(x / sqrt 2))`` (Hendrycks & Gimpel, arXiv 1606.08415, section 2),
not the approximation by tanh. NumPy has no erf; this one is Cody's (Math. Comp. 23 (1969) 631-637,
with the coefficients of netlib's SPECFUN), of relative error below 1e-15.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array, array_module, refuse_exact
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.half import rounds_half_once

_SMALL, _MIDDLE, _LARGEST = 0.46875, 4.0, 27.0  # erfc underflows above the last
# Numerator and denominator of each interval, highest power first.
_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
     2.84423683343917062e3),
)  # fmt: skip
_MID = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
     1.23033935480374942e3),
)  # fmt: skip
_FAR = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
     1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1,
     6.05183413124413191e-2, 2.33520497626869185e-3),
)  # fmt: skip


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
    """``Phi(x) = erfc(-x / sqrt 2) / 2``, without cancellation on the left."""
    refuse_exact("gelu", x, "the exponential of a rational is irrational")
    z = x.astype("float64") / -math.sqrt(2)
    phi: Array = (erfc(z) / 2).astype(x.dtype)
    return phi


def erfc(x: Array) -> Array:
    """``1 - erf(x)`` of float64 numbers."""
    xp = array_module(x)
    size = abs(x)
    near = xp.minimum(size, _SMALL)
    erf_near = near * _ratio(near * near, _NEAR)
    mid = xp.minimum(xp.maximum(size, _SMALL), _MIDDLE)
    far = xp.minimum(xp.maximum(size, _MIDDLE), _LARGEST)
    inverse = 1 / (far * far)
    tail = (1 / math.sqrt(math.pi) - inverse * _ratio(inverse, _FAR)) / far
    above = xp.where(size <= _MIDDLE, _bell(xp, mid) * _ratio(mid, _MID), _bell(xp, far) * tail)
    above = xp.where(size > _LARGEST, 0.0, above)
    small = xp.where(x < 0, 1 + erf_near, 1 - erf_near)
    large = xp.where(x < 0, 2 - above, above)
    found: Array = xp.where(size <= _SMALL, small, large)
    return xp.where(xp.isnan(x), x, found)  # type: ignore[no-any-return]


def _ratio(x: Array, of: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """A quotient of polynomials, by Horner's rule."""
    above, below = (sum_of_powers(x, coefficients) for coefficients in of)
    return above / below


def sum_of_powers(x: Array, coefficients: tuple[float, ...]) -> Array:
    """A polynomial, highest power first."""
    total = x * 0 + coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _bell(xp: Any, x: Array) -> Array:
    """``exp(-x^2)``, with x split so that its square loses nothing."""
    high = xp.trunc(x * 16) / 16
    bell: Array = xp.exp(-high * high) * xp.exp(-(x - high) * (x + high))
    return bell
