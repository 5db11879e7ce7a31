"""Sums over an image's pixels and factors per image and channel: pooling and SE blocks.

Squeeze-and-excitation is ``y = [relu](x * scale)`` with (N, C) scales; its gradients are
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
    x: Array,
    factor: Array | None = None,
    gate: Array | None = None,
    *,
    mean: bool = False,
    dtype: Any = None,
    out: Array | None = None,
) -> Array:
    """Sum over H and W of ``x``, or of ``x * factor``, where ``gate > 0``; for each image, channel.

    Parameters
    ----------
    x, factor, gate : (N, H, W, C) arrays of one dtype; the last two may be None
    mean : bool
        Divide by H * W: global average pooling.
    dtype : of the result: that of `x`, or float32 (the default; float64 for float64)

    Returns
    -------
    (N, C) array; the sum is made in float32 (float64), in a fixed order
    """
    N, H, W, C = x.shape
    real = real_dtype(x.dtype)
    require_arrays("spatial_sums", x.shape, x.dtype, x=x, factor=factor, gate=gate)
    if H * W == 0:
        raise ShapeError(f"spatial_sums: x.shape (={x.shape}) has no pixel")
    wanted = real if dtype is None else np.dtype(dtype)
    if wanted not in (real, x.dtype):
        raise ShapeError(f"spatial_sums: dtype (={wanted}) must be {real} or that of x, {x.dtype}")
    sums = empty((N, C), wanted, out, "spatial_sums")
    if sums.size == 0:
        return sums
    rows = split_rows((x, factor, gate), least_rows=H * W, blocks=1, slices=N)
    launch(
        _FILE,
        "spatial_sums",
        x.dtype,
        (N, rows.tiles),
        rows.block,
        (
            x,
            factor,
            gate,
            sums,
            np.int32(wanted == real),
            np.float64(1 / (H * W) if mean else 1),
            *rows.arguments,
        ),
    )
    return sums


def global_avg_pool_forward(x: Array, *, out: Array | None = None) -> Array:
    """Mean over H and W: (N, H, W, C) -> (N, C), dtype of `x`."""
    return spatial_sums(x, mean=True, dtype=x.dtype, out=out)


def global_avg_pool_backward(
    grad_y: Array, *, shape: tuple[int, int, int, int], out: Array | None = None
) -> Array:
    """``grad_y / (H * W)`` at every pixel: (N, C) -> (N, H, W, C) = `shape`, dtype of `grad_y`."""
    N, H, W, C = shape
    require_arrays("global_avg_pool_backward", (N, C), grad_y.dtype, grad_y=grad_y)
    grad_x = empty(shape, grad_y.dtype, out, "global_avg_pool_backward")
    _affine(None, None, grad_y, None, grad_x, relu=False, shift_factor=1 / max(H * W, 1))
    return grad_x


def scale_channels(
    x: Array,
    scale: Array,
    shift: Array | None = None,
    gate: Array | None = None,
    *,
    relu: bool = False,
    out: Array | None = None,
) -> Array:
    """``y = [relu](x * scale + shift)`` where ``gate > 0``, by image and channel.

    Parameters
    ----------
    x, gate : (N, H, W, C) arrays of one dtype; `gate` may be None: everywhere
        Where ``gate > 0`` is false, `x` counts as 0 (and `shift` still comes on top).
    scale, shift : (N, C) arrays, both of the dtype of `x` or both float32 (float64)
    relu : bool

    Returns
    -------
    (N, H, W, C) array, dtype of `x`
    """
    N, _, _, C = x.shape
    require_arrays("scale_channels", x.shape, x.dtype, x=x, gate=gate)
    wide = scale.dtype == real_dtype(x.dtype)
    dtype = real_dtype(x.dtype) if wide else x.dtype
    require_arrays("scale_channels", (N, C), dtype, scale=scale, shift=shift)
    y = empty(x.shape, x.dtype, out, "scale_channels")
    _affine(x, scale, shift, gate, y, relu=relu, shift_factor=1.0)
    return y


def _affine(
    x: Array | None,
    scale: Array | None,
    shift: Array | None,
    gate: Array | None,
    y: Array,
    *,
    relu: bool,
    shift_factor: float,
) -> None:
    if y.size == 0:
        return
    vector = scale if scale is not None else shift
    assert vector is not None
    rows = split_rows((x, gate, y), least_rows=8, blocks=4096, slices=y.shape[0])
    launch(
        _FILE,
        "scale_channels",
        y.dtype,
        (rows.chunks, rows.tiles, min(y.shape[0], 65535)),
        rows.block,
        (
            x,
            scale,
            shift,
            gate,
            y,
            np.int32(vector.dtype == real_dtype(y.dtype)),
            np.float64(shift_factor),
            np.int32(relu),
            np.int32(y.shape[0]),
            *rows.arguments,
        ),
    )
