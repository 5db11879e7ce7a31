"""The logistic function."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array, array_module, refuse_exact
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.half import rounds_half_once


class SigmoidCache(NamedTuple):
    """The output: the derivative is ``y * (1 - y)``."""

    y: Array


@rounds_half_once
def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """Squash to (0, 1); never overflows; NaN stays NaN.

    ``y = 1 / (1 + exp(-x))``, for negative `x` written ``exp(x) / (1 + exp(x))``.

    Parameters
    ----------
    x : array of any shape, floating

    Returns
    -------
    y : array, shape and dtype of `x`
    cache : for `sigmoid_backward`

    Raises
    ------
    InexactError
        If `x` holds exact rationals.
    """
    refuse_exact("sigmoid", x, "the exponential of a rational is irrational")
    xp = array_module(x)
    decay = xp.exp(-abs(x))  # in [0, 1]
    y = xp.where(x < 0, decay, 1) / (1 + decay)
    return y, SigmoidCache(y)


@rounds_half_once
def sigmoid_backward(grad_y: Array, cache: SigmoidCache) -> Array:
    """Gradient with respect to ``x``: ``grad_x = grad_y * y * (1 - y)``.

    Parameters
    ----------
    grad_y : array, shape and dtype of ``y``
    cache : from `sigmoid_forward`

    Returns
    -------
    grad_x : array, shape and dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    require_equal("sigmoid", "grad_y.shape", grad_y.shape, "y.shape", cache.y.shape)
    grad_x: Array = grad_y * cache.y * (1 - cache.y)
    return grad_x
