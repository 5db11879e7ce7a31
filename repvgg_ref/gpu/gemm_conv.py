"""Convolutions as matrix products, for cases or machines without cuDNN; NHWC.

    y[g]           = columns(x)[g] W[g]^T         pixels x O/G
    grad_x         = columns^T (grad_y[g] W[g])   every pixel gathers from the windows it was in
    grad_weight[g] = grad_y[g]^T columns(x)[g]

Columns are `Kh * Kw` times as large as x, so images go through in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import cupy
import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.gpu import kernels as cuda
from repvgg_ref.gpu.geometry import Geometry
from repvgg_ref.gpu.math_mode import Math
from repvgg_ref.gpu.products import matmul

COLUMN_BYTES = 2**28  # of a chunk


class GemmConvolutions:
    """`gpu.conv2d.Convolution` for every case; kernels are (O, Kh, Kw, C/G)."""

    def __init__(self, math: Math) -> None:
        self._math = math

    def forward(
        self, x: Array, kernels: Array, bias: Array | None, sizes: Geometry, y: Array, *, relu: bool
    ) -> bool:
        """Fill y (N, Ho, Wo, O) with ``[relu](conv2d(x) + bias)``."""
        rows = _kernel_rows(kernels, sizes)
        for part, chunk in _chunks(sizes, x.itemsize):
            columns = self._columns(x[part], chunk)
            flat = y[part].reshape(-1, sizes.outputs)
            for g in range(sizes.groups):
                # (pixels, O/G) = (pixels, Kh*Kw*C/G) @ (Kh*Kw*C/G, O/G)
                if sizes.groups == 1:
                    matmul(columns[g], rows[g].T, math=self._math, out=flat)
                else:
                    flat[:, _group(sizes, g)] = matmul(columns[g], rows[g].T, math=self._math)
        if relu or bias is not None:
            cuda.bias_relu(y, bias, relu=relu)
        return True

    def grad_x(self, grad_y: Array, kernels: Array, sizes: Geometry, grad_x: Array) -> bool:
        """Fill grad_x (N, H, W, C)."""
        rows = _kernel_rows(kernels, sizes)
        for part, chunk in _chunks(sizes, grad_y.itemsize):
            flat = grad_y[part].reshape(-1, sizes.outputs)
            columns = (
                grad_x[part].reshape(1, -1, sizes.channels)
                if _is_view(sizes)
                else cupy.empty(chunk.columns_shape, grad_y.dtype)
            )
            for g in range(sizes.groups):
                # (pixels, Kh*Kw*C/G) = (pixels, O/G) @ (O/G, Kh*Kw*C/G)
                mine = cupy.ascontiguousarray(flat[:, _group(sizes, g)])
                matmul(mine, rows[g], math=self._math, out=columns[g])
            if not _is_view(sizes):
                cuda.col2im(columns, chunk, out=grad_x[part])
        return True

    def grad_weight(self, x: Array, grad_y: Array, sizes: Geometry, grad: Array) -> bool:
        """Fill grad (O, Kh, Kw, C/G); chunks are summed in float32."""
        rows = _kernel_rows(grad, sizes)
        total = cupy.zeros(rows.shape, np.promote_types(grad.dtype, np.float32))
        for part, chunk in _chunks(sizes, x.itemsize):
            columns = self._columns(x[part], chunk)
            flat = grad_y[part].reshape(-1, sizes.outputs)
            for g in range(sizes.groups):
                # (O/G, Kh*Kw*C/G) = (O/G, pixels) @ (pixels, Kh*Kw*C/G)
                mine = cupy.ascontiguousarray(flat[:, _group(sizes, g)])
                total[g] += matmul(mine.T, columns[g], math=self._math)
        rows[...] = total
        return True

    def _columns(self, x: Array, sizes: Geometry) -> Array:
        """(groups, pixels, Kh*Kw*C/G)."""
        if _is_view(sizes):
            view: Array = x.reshape(1, -1, sizes.channels)
            return view
        return cuda.im2col(x, sizes)


def _is_view(sizes: Geometry) -> bool:
    """Whether the columns are x itself."""
    return sizes.is_pointwise and sizes.stride == (1, 1) and sizes.groups == 1


def _kernel_rows(kernels: Array, sizes: Geometry) -> Array:
    """(O, Kh, Kw, C/G) -> (G, O/G, Kh*Kw*C/G): a view."""
    rows: Array = kernels.reshape(sizes.groups, sizes.outputs // sizes.groups, -1)
    return rows


def _group(sizes: Geometry, g: int) -> slice:
    """The outputs of group `g`."""
    size = sizes.outputs // sizes.groups
    return slice(g * size, (g + 1) * size)


def _chunks(sizes: Geometry, itemsize: int) -> Iterator[tuple[slice, Geometry]]:
    """Runs of images whose columns take no more than `COLUMN_BYTES`, and their sizes."""
    columns = prod(sizes._replace(images=1).columns_shape) * itemsize  # of one image
    step = max(1, COLUMN_BYTES // max(1, columns))
    for start in range(0, sizes.images, step):
        stop = min(start + step, sizes.images)
        yield slice(start, stop), sizes._replace(images=stop - start)
