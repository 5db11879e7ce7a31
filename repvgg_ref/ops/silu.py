"""SiLU: what is weighed by its own sigmoid."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.half import rounds_half_once
from repvgg_ref.ops.sigmoid import sigmoid_forward


class SiluCache(NamedTuple):
    """The input and its sigmoid."""

    x: Array
    gate: Array


@rounds_half_once
def silu_forward(x: Array) -> tuple[Array, SiluCache]:
    """Multiply by the sigmoid; never overflows; NaN stays NaN.

    ``y = x / (1 + exp(-x))`` (Elfwing et al., arXiv 1702.03118, equation 8).

    Parameters
    ----------
    x : array of any shape, floating

    Returns
    -------
    y : array, shape and dtype of `x`
    cache : for `silu_backward`

    Raises
    ------
    InexactError
        If `x` holds exact rationals.
    """
    gate, _ = sigmoid_forward(x)
    return x * gate, SiluCache(x, gate)


@rounds_half_once
def silu_backward(grad_y: Array, cache: SiluCache) -> Array:
    """Gradient with respect to ``x``.

    ``grad_x = grad_y * s * (1 + x * (1 - s))`` with ``s = sigmoid(x)`` (equation 10).

    Parameters
    ----------
    grad_y : array, shape and dtype of ``y``
    cache : from `silu_forward`

    Returns
    -------
    grad_x : array, shape and dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    require_equal("silu", "grad_y.shape", grad_y.shape, "y.shape", cache.x.shape)
    grad_x: Array = grad_y * cache.gate * (1 + cache.x * (1 - cache.gate))
    return grad_x
