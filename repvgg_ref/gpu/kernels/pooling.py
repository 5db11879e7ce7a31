"""Sums over an image's pixels and factors per image and channel: pooling and SE blocks.

Squeeze-and-excitation is ``y = x * scale`` with (N, C) scales; its gradients are
``grad_scale = spatial_sums(grad_y, x)`` and ``grad_x = scale_channels(grad_y, scale, shift)``,
`shift` being the pooled path's ``grad / (H * W)`` (Hu et al., arXiv 1709.01507, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.gpu.kernels.launch import (
    empty,
    launch,
    real_dtype,
    require_arrays,
    split_rows,
)

_FILE = "pooling.cu"


def spatial_sums(
    x: Array, factor: Array | None = None, *, mean: bool = False, out: Array | None = None
) -> Array:
    """Sum over H and W of ``x``, or of ``x * factor``, for each image and channel.

    Parameters
    ----------
    x, factor : (N, H, W, C) arrays of one dtype; the last may be None
    mean : bool
        Divide by H * W: global average pooling.

    Returns
    -------
    (N, C) array of float32 (float64); the sum is made in a fixed order
    """
    N, H, W, C = x.shape
    require_arrays("spatial_sums", x.shape, x.dtype, x=x, factor=factor)
    if H * W == 0:
        raise ShapeError(f"spatial_sums: x.shape (={x.shape}) has no pixel")
    require_arrays("spatial_sums", (N, C), real_dtype(x.dtype), out=out)
    sums = empty((N, C), real_dtype(x.dtype)) if out is None else out
    if sums.size == 0:
        return sums
    rows = split_rows((x, factor), least_rows=H * W, blocks=1, slices=N)
    launch(
        _FILE,
        "spatial_sums",
        x.dtype,
        (N, rows.tiles),
        rows.block,
        (x, factor, sums, np.float64(1 / (H * W) if mean else 1), *rows.arguments),
    )
    return sums


def scale_channels(x: Array, scale: Array, shift: Array | None = None) -> Array:
    """``y = x * scale + shift`` by image and channel.

    Parameters
    ----------
    x : (N, H, W, C) array
    scale, shift : (N, C) arrays of float32 (float64); `shift` may be None: 0

    Returns
    -------
    (N, H, W, C) array, dtype of `x`
    """
    N, _, _, C = x.shape
    require_arrays("scale_channels", x.shape, x.dtype, x=x)
    require_arrays("scale_channels", (N, C), real_dtype(x.dtype), scale=scale, shift=shift)
    return _affine(x, scale, shift, empty(x.shape, x.dtype))


def spread_over_pixels(values: Array, *, shape: tuple[int, int, int, int], dtype: Any) -> Array:
    """(N, C) `values` of float32 (float64) at every pixel: (N, H, W, C) = `shape`, of `dtype`."""
    N, _, _, C = shape
    require_arrays("spread_over_pixels", (N, C), real_dtype(dtype), values=values)
    return _affine(None, None, values, empty(shape, dtype))


def _affine(x: Array | None, scale: Array | None, shift: Array | None, y: Array) -> Array:
    if y.size == 0:
        return y
    rows = split_rows((x, y), least_rows=8, blocks=4096, slices=y.shape[0])
    launch(
        _FILE,
        "scale_channels",
        y.dtype,
        (rows.chunks, rows.tiles, min(y.shape[0], 65535)),
        rows.block,
        (x, scale, shift, y, np.int32(y.shape[0]), *rows.arguments),
    )
    return y
