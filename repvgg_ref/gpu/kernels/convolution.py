"""Convolution as a matrix product: im2col, its transpose, and bias + ReLU. (N, H, W, C) arrays.

The fallback where cuDNN is missing: ``columns[g] @ weight[g]`` with the weight as (kh, kw, C / G)
x (O / G); Chellapilla et al., 2006, section 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.gpu.kernels.launch import (
    THREADS,
    empty,
    launch,
    real_dtype,
    require_arrays,
    split_rows,
    vector_width,
)

Pair = tuple[int, int]
_FILE = "convolution.cu"
_GEOMETRY = np.dtype([("numbers", np.int32, 15)])
_MOST_ROWS = 2**31 - 1  # the kernels count pixels in 32 bits, elements in 64


def im2col(
    x: Array,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    out: Array | None = None,
) -> Array:
    """Every window of `x` as a row; padding is zeros.

    Parameters
    ----------
    x : (N, H, W, C) array
    kernel, stride, padding, dilation : (vertical, horizontal) ints
    groups : int, divides C

    Returns
    -------
    (groups, N * Ho * Wo, Kh * Kw * C / groups) array, dtype of `x`
        Moves ``x.nbytes * (1 + Kh * Kw / stride^2)`` bytes.

    Raises
    ------
    ShapeError
        If the geometry leaves no output pixel, or has 2**31 pixels or more.
    """
    geometry = _geometry("im2col", x.shape, kernel, stride, padding, dilation, groups)
    shape = columns_shape(
        x.shape, kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    require_arrays("im2col", x.shape, x.dtype, x=x)
    columns = empty(shape, x.dtype, out, "im2col")
    if columns.size == 0:
        return columns
    width = vector_width((x, columns), x.shape[3] // groups)
    vectors = shape[2] // width
    lanes = min(vectors, THREADS)
    height = THREADS // lanes
    launch(
        _FILE,
        "im2col",
        x.dtype,
        (min(-(-shape[1] // height), 65536), 1, groups),
        (lanes, height),
        (x, columns, geometry, np.int32(width)),
    )
    return columns


def col2im(
    columns: Array,
    *,
    shape: tuple[int, int, int, int],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    out: Array | None = None,
) -> Array:
    """The transpose of `im2col`: every pixel gathers what its windows hold of it, in fixed order.

    Parameters
    ----------
    columns : (groups, N * Ho * Wo, Kh * Kw * C / groups) array
    shape : (N, H, W, C) of the result
    kernel, stride, padding, dilation, groups : as for `im2col`

    Returns
    -------
    (N, H, W, C) array, dtype of `columns`; sums are made in float32 (float64)
    """
    geometry = _geometry("col2im", shape, kernel, stride, padding, dilation, groups)
    wanted = columns_shape(
        shape, kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    require_arrays("col2im", wanted, columns.dtype, columns=columns)
    grad_x = empty(shape, columns.dtype, out, "col2im")
    if grad_x.size == 0:
        return grad_x
    width = vector_width((columns, grad_x), shape[3] // groups)
    lanes = min(shape[3] // width, THREADS)
    height = THREADS // lanes
    pixels = shape[0] * shape[1] * shape[2]
    launch(
        _FILE,
        "col2im",
        columns.dtype,
        (min(-(-pixels // height), 65536),),
        (lanes, height),
        (columns, grad_x, geometry, np.int32(width)),
    )
    return grad_x


def columns_shape(
    shape: tuple[int, ...],
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[int, int, int]:
    """Shape of an (N, H, W, C) array's columns: (groups, N * Ho * Wo, Kh * Kw * C / groups)."""
    Ho, Wo = _output_size(shape, kernel, stride, padding, dilation)
    return groups, shape[0] * Ho * Wo, kernel[0] * kernel[1] * (shape[3] // groups)


def bias_relu(y: Array, bias: Array | None, *, relu: bool = True) -> Array:
    """``y = [relu](y + bias)`` in place: reads and writes `y` once.

    Parameters
    ----------
    y : (..., O) array, overwritten
    bias : (O,) array of the dtype of `y`, or of float32, or None
    relu : bool

    Returns
    -------
    y itself
    """
    O = y.shape[-1]  # noqa: E741 - the field's letter for output channels
    require_arrays("bias_relu", y.shape, y.dtype, y=y)
    wide_bias = bias is not None and bias.dtype == real_dtype(y.dtype)
    if bias is not None:
        require_arrays("bias_relu", (O,), real_dtype(y.dtype) if wide_bias else y.dtype, bias=bias)
    if y.size:
        rows = split_rows((y,), least_rows=8, blocks=4096)
        launch(
            _FILE,
            "bias_relu",
            y.dtype,
            rows.grid(),
            rows.block,
            (y, bias, np.int32(wide_bias), np.int32(relu), *rows.arguments),
        )
    return y


def _geometry(
    operator: str,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Any:
    """The kernels' `struct Geometry`."""
    N, H, W, C = shape
    Ho, Wo = _output_size(shape, kernel, stride, padding, dilation)
    if groups < 1 or C % groups:
        raise ShapeError(f"{operator}: C (={C}) must be a multiple of groups (={groups})")
    if min(Ho, Wo) < 1:
        raise ShapeError(f"{operator}: no output pixel: Ho, Wo (={Ho}, {Wo}) of {H} x {W}")
    if N * max(Ho * Wo, H * W) > _MOST_ROWS:
        raise ShapeError(f"{operator}: N * H * W (={N * max(Ho * Wo, H * W)}) must be below 2**31")
    numbers = (N, H, W, C, Ho, Wo, *kernel, *stride, *padding, *dilation, groups)
    return np.array((numbers,), _GEOMETRY)


def _output_size(
    shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    Ho, Wo = (
        math.floor((shape[1 + k] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1) / stride[k])
        + 1
        for k in range(2)
    )
    return Ho, Wo
