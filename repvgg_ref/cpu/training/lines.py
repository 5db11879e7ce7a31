"""Kernels of one row or one column, stride 1: gathered a piece at a time, multiplied once.

Within a square kernel they would be convolved as that is, most of its taps being zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.layout import carve, image_blocks
from repvgg_ref.cpu.training.passes import Grid, make_grid, scratch_of
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import share_out


class Line(NamedTuple):
    """A centred convolution of x (N, H, W, C) with a kernel (O, C, k, 1) or (O, C, 1, k)."""

    x: Array
    weight: Array
    dilation: int

    @property
    def axis(self) -> int:
        """Of x, along which the taps lie."""
        return 1 if self.weight.shape[3] == 1 else 2

    @property
    def taps(self) -> int:
        """How many."""
        rows, columns = self.weight.shape[2:]
        return int(max(rows, columns))

    @property
    def grid(self) -> Grid:
        """Pieces whose columns lie in cache."""
        images, height, width, channels = self.x.shape
        return make_grid(images, height, width, self.taps * channels)


def convolve(line: Line) -> Array:
    """The output (N, H, W, O)."""
    grid, outputs = line.grid, len(line.weight)
    y = memory.empty((*line.x.shape[:3], outputs), line.x.dtype)
    # (O, C, k) -> (k, C, O) -> (k C, O)
    packed = line.weight.reshape(*line.weight.shape[:2], -1).transpose(2, 1, 0)
    packed = np.ascontiguousarray(packed).reshape(-1, outputs)
    scratch = scratch_of(grid, len(packed), 1, y.dtype)

    def share(worker: int, item: int) -> None:
        for piece in grid.share(item):
            # (pixels, O) = (pixels, k C) @ (k C, O)
            np.matmul(
                _columns(line, grid, piece, scratch[worker, 0]), packed, out=grid.of(y, piece)
            )

    share_out(grid.shares, share)
    return y


def input_gradient(grad_y: Array, line: Line) -> Array:
    """Gradient of x: a convolution of grad_y with the kernels turned and transposed."""
    turned = line.weight[:, :, ::-1, ::-1].swapaxes(0, 1)
    return convolve(Line(grad_y, turned, line.dilation))


def weight_gradient(grad_y: Array, line: Line) -> Array:
    """Gradient of the kernels, in their shape."""
    grid, taps = line.grid, line.taps
    channels, outputs = line.x.shape[3], grad_y.shape[3]
    sums = np.zeros((grid.shares, taps * channels, outputs), grad_y.dtype)
    scratch = scratch_of(grid, taps * channels, 1, grad_y.dtype)

    def share(worker: int, item: int) -> None:
        product = np.empty_like(sums[0])
        for piece in grid.share(item):
            seen = _columns(line, grid, piece, scratch[worker, 0])
            # (k C, O) = (k C, pixels) @ (pixels, O)
            np.matmul(seen.T, grid.of(grad_y, piece), out=product)
            sums[item] += product

    share_out(grid.shares, share)
    # (k, C, O) -> (O, C, k)
    found: Array = sums.sum(axis=0).reshape(taps, channels, outputs).transpose(2, 1, 0)
    return found.reshape(line.weight.shape)


def _columns(line: Line, grid: Grid, piece: int, scratch: Array) -> Array:
    """What every pixel of a piece sees, (pixels, k C); beyond the image zeros."""
    start, stop = grid.span(piece)
    width, channels, taps = grid.width, line.x.shape[3], line.taps
    columns = carve(scratch, (stop - start, width, taps, channels))
    for images, first, last, place in image_blocks(start, stop, grid.height):
        count = images.stop - images.start
        # (images * rows, W, k, C) -> (images, rows, W, k, C)
        held = columns[place].reshape(count, last - first, width, taps, channels)
        for tap in range(taps):
            apart = (tap - taps // 2) * line.dilation
            if line.axis == 1:
                _shifted(line.x[images], 1, first + apart, held[:, :, :, tap])
            else:
                _shifted(line.x[images, first:last], 2, apart, held[:, :, :, tap])
    return columns.reshape(-1, taps * channels)


def _shifted(x: Array, axis: int, begin: int, out: Array) -> None:
    """``out[i] = x[begin + i]`` along an axis, zeros where there is no such."""
    count, size = out.shape[axis], x.shape[axis]
    low = min(max(0, -begin), count)
    high = max(min(count, size - begin), low)
    before = (slice(None),) * axis
    for empty in (slice(low), slice(high, None)):
        out[(*before, empty)] = 0
    out[(*before, slice(low, high))] = x[(*before, slice(begin + low, begin + high))]
