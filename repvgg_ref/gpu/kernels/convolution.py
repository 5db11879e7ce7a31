"""Convolution as a matrix product: im2col, its transpose, and bias + ReLU. (N, H, W, C) arrays.

The fallback where cuDNN is missing: ``columns[g] @ weight[g]`` with the weight as (kh, kw, C / G)
x (O / G); Chellapilla et al., 2006, section 2.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.gpu.geometry import Geometry
from repvgg_ref.gpu.kernels.launch import (
    THREADS,
    empty,
    launch,
    real_dtype,
    require_arrays,
    split_rows,
    vector_width,
)

_FILE = "convolution.cu"
_GEOMETRY = np.dtype([("numbers", np.int32, 15)])
_MOST_PIXELS = 2**31 - 1  # the kernels count pixels in 32 bits, elements in 64


def im2col(x: Array, sizes: Geometry) -> Array:
    """Every window of `x` as a row; padding is zeros.

    Parameters
    ----------
    x : (N, H, W, C) array
    sizes : Geometry of the convolution

    Returns
    -------
    (groups, N * Ho * Wo, Kh * Kw * C / groups) array, dtype of `x`
        Moves ``x.nbytes * (1 + Kh * Kw / stride^2)`` bytes.

    Raises
    ------
    ShapeError
        If `x` is not of these sizes, or has 2**31 pixels or more.
    """
    structure = _structure("im2col", sizes)
    require_arrays("im2col", sizes.x_shape, x.dtype, x=x)
    columns = empty(sizes.columns_shape, x.dtype)
    if columns.size == 0:
        return columns
    groups, pixels, row = columns.shape
    width = vector_width((x, columns), sizes.channels // groups)
    lanes = min(row // width, THREADS)
    height = THREADS // lanes
    launch(
        _FILE,
        "im2col",
        x.dtype,
        (min(-(-pixels // height), 65536), 1, groups),
        (lanes, height),
        (x, columns, structure, np.int32(width)),
    )
    return columns


def col2im(columns: Array, sizes: Geometry, *, out: Array | None = None) -> Array:
    """The transpose of `im2col`: every pixel gathers what its windows hold of it, in fixed order.

    Parameters
    ----------
    columns : (groups, N * Ho * Wo, Kh * Kw * C / groups) array
    sizes : as for `im2col`

    Returns
    -------
    (N, H, W, C) array, dtype of `columns`; sums are made in float32 (float64)
    """
    structure = _structure("col2im", sizes)
    require_arrays("col2im", sizes.columns_shape, columns.dtype, columns=columns)
    require_arrays("col2im", sizes.x_shape, columns.dtype, out=out)
    grad_x = empty(sizes.x_shape, columns.dtype) if out is None else out
    if grad_x.size == 0:
        return grad_x
    width = vector_width((columns, grad_x), sizes.channels // sizes.groups)
    lanes = min(sizes.channels // width, THREADS)
    height = THREADS // lanes
    pixels = sizes.images * prod(sizes.size)
    launch(
        _FILE,
        "col2im",
        columns.dtype,
        (min(-(-pixels // height), 65536),),
        (lanes, height),
        (columns, grad_x, structure, np.int32(width)),
    )
    return grad_x


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


def _structure(operator: str, sizes: Geometry) -> Any:
    """The kernels' `struct Geometry`."""
    pixels = sizes.images * max(prod(sizes.size), prod(sizes.out_size))
    if pixels > _MOST_PIXELS:
        raise ShapeError(f"{operator}: N * H * W (={pixels}) must be below 2**31")
    window = (*sizes.kernel, *sizes.stride, *sizes.padding, *sizes.dilation)
    numbers = (*sizes.x_shape, *sizes.out_size, *window, sizes.groups)
    return np.array((numbers,), _GEOMETRY)
