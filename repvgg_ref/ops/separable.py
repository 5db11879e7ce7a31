"""Linear maps of images that treat rows and columns alike: ``y = A x B^T`` for every channel.

``A`` is (Ho, H) and ``B`` (Wo, W), so the map's adjoint is ``grad_x = A^T grad_y B``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import ShapeError, require_equal

Size = tuple[int, int]  # height, width
Matrix = Callable[[int, int, Any], Array]  # (outputs, pixels, dtype) -> (outputs, pixels)


class SeparableCache(NamedTuple):
    """``A`` (Ho, H) and ``B`` (Wo, W)."""

    rows: Array
    columns: Array


def matrices(operator: str, matrix: Matrix, x: Array, size: Size) -> SeparableCache:
    """``A`` and ``B`` for `x` (N, C, H, W), in its dtype; `ShapeError` if they cannot be."""
    require_equal(operator, "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    if min(x.shape[2:]) < 1 or min(size) < 1:
        raise ShapeError(f"{operator}: x.shape (={x.shape}) or size (={size}) has no pixel")
    xp = array_module(x)
    pairs = zip(size, x.shape[2:], strict=True)
    return SeparableCache(*(xp.asarray(matrix(*pair, x.dtype)) for pair in pairs))


def separable_forward(x: Array, cache: SeparableCache) -> Array:
    """``A x B^T`` of each channel."""
    # (N, C, Ho, Wo) = (Ho, H) @ (N, C, H, W) @ (W, Wo)
    y: Array = cache.rows @ x @ cache.columns.T
    return y


def separable_backward(operator: str, grad_y: Array, cache: SeparableCache) -> Array:
    """``A^T grad_y B`` of each channel; `ShapeError` if `grad_y` has not the size of ``y``."""
    wanted = len(cache.rows), len(cache.columns)
    require_equal(operator, "grad_y.shape[2:]", grad_y.shape[2:], "size", wanted)
    # (N, C, H, W) = (H, Ho) @ (N, C, Ho, Wo) @ (Wo, W)
    grad_x: Array = cache.rows.T @ grad_y @ cache.columns
    return grad_x


def like(matrix: Array, numerators: Array, denominators: Array) -> Array:
    """Their quotients as elements of `matrix`: rationals where it is exact, else rounded once."""
    if matrix.dtype != np.object_:
        quotients: Array = numerators.astype(matrix.dtype) / denominators.astype(matrix.dtype)
        return quotients
    from fractions import Fraction

    pairs = np.broadcast_arrays(numerators, denominators)
    return np.array([Fraction(int(a), int(b)) for a, b in zip(*pairs, strict=True)], object)
