"""The rectifier."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import require_equal


class ReluCache(NamedTuple):
    """Where the gradient stops: a boolean array, shape of ``x``."""

    blocked: Array


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Replace what is negative by zero; NaN stays NaN.

    ``y = max(x, 0)`` (Nair & Hinton, ICML 2010).

    Parameters
    ----------
    x : array of any shape, floating or exact

    Returns
    -------
    y : array, shape and dtype of `x`
    cache : for `relu_backward`
    """
    return array_module(x).maximum(x, 0), ReluCache(x <= 0)


def relu_backward(grad_y: Array, cache: ReluCache) -> Array:
    """Gradient with respect to ``x``.

    ``grad_x = grad_y where x > 0, else 0``: at 0 itself the subgradient 0, as torch takes it.
    Where ``x`` was NaN the gradient passes, so that it cannot vanish unseen.

    Parameters
    ----------
    grad_y : array, shape and dtype of ``y``
    cache : from `relu_forward`

    Returns
    -------
    grad_x : array, shape and dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    require_equal("relu", "grad_y.shape", grad_y.shape, "y.shape", cache.blocked.shape)
    grad_x: Array = array_module(grad_y).where(cache.blocked, 0, grad_y)
    return grad_x
