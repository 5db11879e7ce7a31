"""The fully connected layer."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.half import rounds_half_once


class LinearCache(NamedTuple):
    """The operands."""

    x: Array
    weight: Array


class LinearGrads(NamedTuple):
    """Gradients with the shapes of ``x``, ``weight`` and ``bias``."""

    grad_x: Array
    grad_weight: Array
    grad_bias: Array


@rounds_half_once
def linear_forward(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
    """Multiply by a matrix and add a vector: ``y = x @ weight^T + bias``.

    Parameters
    ----------
    x : (N, features) array, floating or exact
    weight : (classes, features) array, dtype of `x`
    bias : (classes,) array, dtype of `x`

    Returns
    -------
    y : (N, classes) array, dtype of `x`
    cache : for `linear_backward`

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    """
    require_equal("linear", "x.ndim", x.ndim, "len((N, features))", 2)
    require_equal("linear", "weight.ndim", weight.ndim, "len((classes, features))", 2)
    require_equal("linear", "weight.shape[1]", weight.shape[1], "features", x.shape[1])
    require_equal("linear", "bias.shape", bias.shape, "(classes,)", weight.shape[:1])
    # (N, classes) = (N, features) @ (features, classes) + (classes,)
    return x @ weight.T + bias, LinearCache(x, weight)


@rounds_half_once
def linear_backward(grad_y: Array, cache: LinearCache) -> LinearGrads:
    """Gradients with respect to ``x``, ``weight`` and ``bias``.

    ``grad_x = grad_y @ weight``, ``grad_weight = grad_y^T @ x``, ``grad_bias = sum over N``.

    Parameters
    ----------
    grad_y : (N, classes) array, dtype of ``y``
    cache : from `linear_forward`

    Returns
    -------
    LinearGrads

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    x, weight = cache
    require_equal("linear", "grad_y.shape", grad_y.shape, "y.shape", (len(x), len(weight)))
    return LinearGrads(
        grad_y @ weight,  # (N, features) = (N, classes) @ (classes, features)
        grad_y.T @ x,  # (classes, features) = (classes, N) @ (N, features)
        grad_y.sum(axis=0),  # (N, classes) -> (classes,)
    )
