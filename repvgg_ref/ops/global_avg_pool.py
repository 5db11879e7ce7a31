"""Global average pooling: each channel's mean over the whole image."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array, array_module, scalar_like
from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.ops.half import rounds_half_once


class GlobalAvgPoolCache(NamedTuple):
    """The shape of ``x``, (N, C, H, W)."""

    x_shape: tuple[int, ...]


@rounds_half_once
def global_avg_pool_forward(x: Array) -> tuple[Array, GlobalAvgPoolCache]:
    """Average each channel over H and W.

    ``y[n, c] = sum over h, w of x[n, c, h, w] / (H W)`` (Lin et al., arXiv 1312.4400, section 3.2).

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact

    Returns
    -------
    y : (N, C) array, dtype of `x`
    cache : for `global_avg_pool_backward`

    Raises
    ------
    ShapeError
        If `x` has not four axes, or no pixel.
    """
    require_equal("global_avg_pool", "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    _, _, H, W = x.shape
    if H * W == 0:
        raise ShapeError(f"global_avg_pool: x.shape (={x.shape}) has no pixel")
    return x.sum(axis=(2, 3)) / scalar_like(H * W, x), GlobalAvgPoolCache(x.shape)


@rounds_half_once
def global_avg_pool_backward(grad_y: Array, cache: GlobalAvgPoolCache) -> Array:
    """Gradient with respect to ``x``: every pixel gets ``grad_y / (H W)``.

    Parameters
    ----------
    grad_y : (N, C) array, dtype of ``y``
    cache : from `global_avg_pool_forward`

    Returns
    -------
    grad_x : (N, C, H, W) array, dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    N, C, H, W = cache.x_shape
    require_equal("global_avg_pool", "grad_y.shape", grad_y.shape, "y.shape", (N, C))
    share = grad_y / scalar_like(H * W, grad_y)
    # (N, C) -> (N, C, 1, 1) -> (N, C, H, W)
    grad_x: Array = array_module(grad_y).broadcast_to(share[:, :, None, None], cache.x_shape).copy()
    return grad_x
