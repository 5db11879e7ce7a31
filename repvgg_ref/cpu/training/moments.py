"""Mean and spread of a batch: a channel's, or of all products of channels, in one pass.

Within a piece about the piece's own mean, in the array's dtype; pieces are merged in float64 (Chan,
Golub & LeVeque 1983, equation 2.1): nothing large is ever subtracted from its like.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.layout import carve
from repvgg_ref.cpu.training.passes import (
    Grid,
    Inputs,
    along_row,
    column_sums,
    correlate,
    scratch_of,
)
from repvgg_ref.cpu.workers.pool import share_out


class Moments(NamedTuple):
    """Mean (C,) and the sum of squares (C,) or products (G, C/G, C/G) about it, in float64."""

    mean: Array
    about_mean: Array


def channel_moments(y: Array, grid: Grid) -> Moments:
    """Mean of `y` and its squares about it, (O,) each."""
    means = np.empty((grid.pieces, y.shape[3]), y.dtype)
    squares = np.empty_like(means)
    scratch = scratch_of(grid, y.shape[3], 1, y.dtype)

    def share(worker: int, item: int) -> None:
        for piece in grid.share(item):
            held = grid.of(y, piece)
            centred = _centre(held, means[piece], carve(scratch[worker, 0], held.shape), grid)
            centred *= centred
            squares[piece] = column_sums(centred)

    share_out(grid.shares, share)
    sizes = grid.sizes()
    mean, apart = _merge(means, sizes)
    return Moments(mean, squares.sum(axis=0, dtype=np.float64) + sizes @ apart**2)


def product_moments(inputs: Inputs) -> Moments:
    """Mean of x and its products about it, as `channel_moments`."""
    grid, channels, groups = inputs.grid, inputs.channels, inputs.window.groups
    dtype = inputs.x.dtype
    means = np.empty((grid.pieces, channels), dtype)
    products = inputs.products(channels)
    scratch = scratch_of(grid, channels, 1, dtype)

    def share(worker: int, item: int) -> None:
        product = np.empty_like(products[0])
        for piece in grid.share(item):
            seen = inputs.piece(piece)
            centred = _centre(seen, means[piece], carve(scratch[worker, 0], seen.shape), grid)
            correlate(centred, centred, product)
            products[item] += product

    share_out(grid.shares, share)
    sizes = grid.sizes()
    mean, apart = _merge(means, sizes)
    split = apart.reshape(len(sizes), groups, -1).transpose(1, 0, 2)  # (G, pieces, C/G)
    between = (split * sizes[:, None]).swapaxes(1, 2) @ split
    return Moments(mean, products.sum(axis=0, dtype=np.float64) + between)


def _centre(pixels: Array, mean: Array, out: Array, grid: Grid) -> Array:
    """``out = pixels - mean``, the mean of these pixels, which goes to `mean`."""
    np.divide(column_sums(pixels), pixels.dtype.type(len(pixels)), out=mean)
    np.subtract(grid.rows_of(pixels), along_row(mean, grid), out=grid.rows_of(out))
    return out


def _merge(means: Array, sizes: Array) -> tuple[Array, Array]:
    """The mean of all, and how far each piece's is from it: (C,), (pieces, C) float64."""
    wide = means.astype(np.float64)
    mean: Array = sizes @ wide / sizes.sum()
    return mean, wide - mean
