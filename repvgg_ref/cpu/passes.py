"""Passes over the pixels of a block, NHWC, a cache-sized piece at a time, on all threads.

What meets per channel or per pixel (moments, masks, affine maps, 1x1 products) is bound by memory,
so each pass does all it can to a piece while that lies in the second-level cache. `branches` says
what the passes are for. Pieces are whole rows of output pixels; a vector meets a row as (W * C,).

Sums come out the same, bit for bit, in every run with the same number of threads: a vector of sums
is kept for each piece, a matrix for each *share* of the pieces, and they are added in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import memory
from repvgg_ref.cpu.layout import carve, image_runs
from repvgg_ref.cpu.pool import Stage, pool

PIECE_NUMBERS = 65_536  # of one array: four or five of them fit in cache
PIECE_PIXELS = 256  # at least, so that adding a product (C, O) costs little beside forming it
SHARES_A_THREAD = 2


class Grid(NamedTuple):
    """The output pixels of a batch, cut into pieces of `rows` rows."""

    images: int
    height: int
    width: int
    stride: int
    groups: int
    rows: int

    @property
    def pixels(self) -> int:
        """Pixels of the whole batch."""
        return self.images * self.height * self.width

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return -(-self.images * self.height // self.rows)

    def span(self, piece: int) -> tuple[int, int]:
        """First row and end of a piece, counted through the batch."""
        return piece * self.rows, min((piece + 1) * self.rows, self.images * self.height)

    def sizes(self) -> Array:
        """Pixels of each piece, float64 (pieces,)."""
        spans = [self.span(piece) for piece in range(self.pieces)]
        return np.array([(stop - start) * self.width for start, stop in spans], np.float64)

    def of(self, image_rows: Array, piece: int) -> Array:
        """A piece of a contiguous (N, H, W, C) array, as (pixels, C): a view."""
        start, stop = self.span(piece)
        flat = image_rows.reshape(-1, image_rows.shape[3])
        return flat[start * self.width : stop * self.width]

    def rows_of(self, pixels: Array) -> Array:
        """(pixels, C) -> (rows, W * C), so that inner loops are long."""
        return pixels.reshape(-1, self.width * pixels.shape[1])


def make_grid(y: Array, channels: int, stride: int, groups: int) -> Grid:
    """Pieces for an output `y` (N, H, W, O) and an input of `channels`."""
    images, height, width, outputs = y.shape
    pixels = max(PIECE_PIXELS, PIECE_NUMBERS // max(channels, outputs))
    pieces = -(-images * height * width // pixels)
    even = pool().threads * SHARES_A_THREAD
    rows = -(-images * height // (-(-pieces // even) * even))
    return Grid(images, height, width, stride, groups, rows)


class Inputs(NamedTuple):
    """Pieces of x as seen from output pixels: every `stride`-th row and column."""

    grid: Grid
    x: Array

    def piece(self, piece: int, scratch: Array) -> Array:
        """(pixels, C): a view where the stride is 1, else a copy in `scratch`."""
        grid = self.grid
        if grid.stride == 1:
            return grid.of(self.x, piece)
        start, stop = grid.span(piece)
        seen = self.x[:, :: grid.stride, :: grid.stride]
        taken = carve(scratch, (stop - start, grid.width, self.x.shape[3]))
        for n, first, last, place in image_runs(start, stop, grid.height):
            np.copyto(taken[place : place + last - first], seen[n, first:last])
        return taken.reshape(-1, self.x.shape[3])


def pointwise(x: Array, weight: Array, out: Array) -> None:
    """``out = x W`` group by group: (pixels, C), (G, C/G, O/G) -> (pixels, O)."""
    groups = len(weight)
    if groups == 1:
        np.matmul(x, weight[0], out=out)
        return
    # (G, pixels, O/G) = (G, pixels, C/G) @ (G, C/G, O/G)
    split = x.reshape(len(x), groups, -1).transpose(1, 0, 2)
    np.matmul(split, weight, out=out.reshape(len(x), groups, -1).transpose(1, 0, 2))


def correlate(x: Array, g: Array, out: Array) -> None:
    """``out = x^T g`` group by group: (pixels, C), (pixels, O) -> (G, C/G, O/G)."""
    groups = len(out)
    if groups == 1:
        np.matmul(x.T, g, out=out[0])
        return
    left = x.reshape(len(x), groups, -1).transpose(1, 2, 0)
    np.matmul(left, g.reshape(len(g), groups, -1).transpose(1, 0, 2), out=out)


class Moments(NamedTuple):
    """Mean (C,) and the sum of squares or products about it, in float64."""

    mean: Array
    about_mean: Array


def moments_of(
    x: Array | None, y: Array, channels: int, grid: Grid
) -> tuple[Moments, Moments | None]:
    """Mean and squares (O,) of `y`; mean and products (G, C/G, C/G) of `x`, where it is given.

    Within a piece about the piece's own mean, in the array's dtype; pieces are merged in float64
    (Chan, Golub & LeVeque 1983, equation 2.1): nothing large is ever subtracted from its like.
    """
    outputs, groups, shares = y.shape[3], grid.groups, _shares(grid)
    means = np.empty((grid.pieces, outputs), y.dtype)
    squares = np.empty_like(means)
    means_x = np.empty((grid.pieces, channels), y.dtype)
    products = np.zeros((shares, groups, channels // groups, channels // groups), y.dtype)
    inputs = None if x is None else Inputs(grid, x)
    scratch = _scratch(grid, max(channels, outputs), 2, y.dtype)

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        product = np.empty_like(products[0])
        for piece in _pieces(grid, item):
            held = grid.of(y, piece)
            centred = _centre(held, means[piece], carve(one, held.shape), grid)
            np.multiply(centred, centred, out=centred)
            squares[piece] = _column_sums(centred)
            if inputs is not None:
                seen = inputs.piece(piece, two)
                centred = _centre(seen, means_x[piece], carve(one, seen.shape), grid)
                correlate(centred, centred, product)
                products[item] += product

    _run(shares, share)
    sizes = grid.sizes()
    mean, apart = _merge(means, sizes)
    of_y = Moments(mean, squares.sum(axis=0, dtype=np.float64) + sizes @ apart**2)
    if x is None:
        return of_y, None
    mean, apart = _merge(means_x, sizes)
    split = apart.reshape(len(sizes), groups, -1).transpose(1, 0, 2)  # (G, pieces, C/G)
    between = (split * sizes[:, None]).swapaxes(1, 2) @ split
    return of_y, Moments(mean, products.sum(axis=0, dtype=np.float64) + between)


def combine(
    x: Array | None,
    y3: Array,
    scale: Array,
    weight: Array | None,
    bias: Array,
    grid: Grid,
    *,
    relu: bool,
) -> Array:
    """``[ReLU](scale y3 + x W + bias)``: vectors (O,), `weight` (G, C/G, O/G) or None with `x`."""
    y = memory.empty(y3.shape, y3.dtype)
    channels = 0 if x is None else x.shape[3]
    inputs = None if x is None else Inputs(grid, x)
    scratch = _scratch(grid, max(channels, y3.shape[3]), 2, y3.dtype)
    scale, bias = np.tile(scale, grid.width), np.tile(bias, grid.width)

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        for piece in _pieces(grid, item):
            held, out = grid.of(y3, piece), grid.of(y, piece)
            rows = grid.rows_of(out)
            if inputs is None or weight is None:
                np.multiply(grid.rows_of(held), scale, out=rows)
            else:
                pointwise(inputs.piece(piece, two), weight, out)
                scaled = grid.rows_of(carve(one, held.shape))
                np.multiply(grid.rows_of(held), scale, out=scaled)
                rows += scaled
            rows += bias
            if relu:
                np.maximum(rows, 0, out=rows)

    _run(_shares(grid), share)
    return y


class GradientSums(NamedTuple):
    """`g` itself (N, H, W, O); sums over pixels in float64."""

    g: Array
    total: Array  # (O,) of g
    with_y3: Array  # (O,) of g (y3 - mean)
    with_x: Array | None  # (G, C/G, O/G) of (x - mean)^T g


def gradient_sums(
    grad_y: Array,
    y: Array | None,
    y3: Array,
    mean_y3: Array,
    x: Array | None,
    mean_x: Array | None,
    grid: Grid,
) -> GradientSums:
    """``g = grad_y where y > 0`` (all of it where `y` is None), and what it sums to."""
    outputs, shares = y3.shape[3], _shares(grid)
    channels = 0 if x is None else x.shape[3]
    g = grad_y if y is None else memory.empty(grad_y.shape, grad_y.dtype)
    totals = np.empty((grid.pieces, outputs), g.dtype)
    with_y3 = np.empty_like(totals)
    per_group = channels // grid.groups, outputs // grid.groups
    with_x = np.zeros((shares, grid.groups, *per_group), g.dtype)
    inputs = None if x is None else Inputs(grid, x)
    scratch = _scratch(grid, max(channels, outputs), 2, g.dtype)
    mean_y3 = np.tile(mean_y3, grid.width)
    mean_x = np.zeros(0) if mean_x is None else np.tile(mean_x, grid.width)

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        product = np.empty_like(with_x[0])
        for piece in _pieces(grid, item):
            under, held = grid.of(g, piece), grid.of(y3, piece)
            if y is not None:  # y is never negative; NaN passes its gradient on
                np.multiply(grid.of(grad_y, piece), grid.of(y, piece) != 0, out=under)
            totals[piece] = _column_sums(under)
            centred = carve(one, held.shape)
            np.subtract(grid.rows_of(held), mean_y3, out=grid.rows_of(centred))
            centred *= under
            with_y3[piece] = _column_sums(centred)
            if inputs is not None:
                seen = inputs.piece(piece, two)
                centred = carve(one, seen.shape)
                np.subtract(grid.rows_of(seen), mean_x, out=grid.rows_of(centred))
                correlate(centred, under, product)
                with_x[item] += product

    _run(shares, share)
    return GradientSums(
        g,
        totals.sum(axis=0, dtype=np.float64),
        with_y3.sum(axis=0, dtype=np.float64),
        None if x is None else with_x.sum(axis=0, dtype=np.float64),
    )


def through_norm(g: Array, y3: Array, scale: Array, shift: Array, out: Array, grid: Grid) -> None:
    """``out = g - (scale y3 + shift)``: vectors (O,); `out` may be the inside of a border."""
    scratch = _scratch(grid, y3.shape[3], 1, g.dtype)
    scale, shift = np.tile(scale, grid.width), np.tile(shift, grid.width)

    def share(worker: int, item: int) -> None:
        for piece in _pieces(grid, item):
            start, stop = grid.span(piece)
            held = grid.of(y3, piece)
            removed = grid.rows_of(carve(scratch[worker, 0], held.shape))
            np.multiply(grid.rows_of(held), scale, out=removed)
            removed += shift
            under = grid.rows_of(grid.of(g, piece))
            for n, first, last, place in image_runs(start, stop, grid.height):
                target = out[n, first:last]
                part = slice(place, place + last - first)
                difference = np.subtract(under[part], removed[part], out=removed[part])
                np.copyto(target, difference.reshape(target.shape))

    _run(_shares(grid), share)


def add_pointwise(
    grad_x: Array, g: Array, from_g: Array, x: Array, from_x: Array, bias: Array, grid: Grid
) -> None:
    """``grad_x += g from_g - x from_x + bias`` at the pixels that 1x1 kernels see, in place.

    Parameters
    ----------
    from_g : (G, O/G, C/G) array
    from_x : (G, C/G, C/G) array
    bias : (C,) array
    """
    channels = x.shape[3]
    inputs = Inputs(grid, x)
    scratch = _scratch(grid, channels, 2, g.dtype)
    bias = np.tile(bias, grid.width)
    seen_by = grad_x[:, :: grid.stride, :: grid.stride]

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        for piece in _pieces(grid, item):
            start, stop = grid.span(piece)
            under = grid.of(g, piece)
            total = carve(one, (len(under), channels))
            other = np.empty_like(total)
            pointwise(under, from_g, total)
            pointwise(inputs.piece(piece, two), from_x, other)
            total -= other
            rows = grid.rows_of(total)
            rows += bias
            for n, first, last, place in image_runs(start, stop, grid.height):
                target = seen_by[n, first:last]
                target += rows[place : place + last - first].reshape(target.shape)

    _run(_shares(grid), share)


def _shares(grid: Grid) -> int:
    return min(grid.pieces, pool().threads * SHARES_A_THREAD)


def _pieces(grid: Grid, share: int) -> Iterator[int]:
    shares = _shares(grid)
    yield from range(share * grid.pieces // shares, (share + 1) * grid.pieces // shares)


def _scratch(grid: Grid, channels: int, arrays: int, dtype: object) -> Array:
    numbers = grid.rows * grid.width * channels
    return memory.empty((pool().threads, arrays, numbers), dtype)


def _run(items: int, run: Callable[[int, int], None]) -> None:
    threads = pool()
    with threads.session():
        threads.run(Stage(items, run))


def _column_sums(pixels: Array) -> Array:
    """(pixels, C) -> (C,), as a product with a row of ones: the fastest sum that there is."""
    sums: Array = np.ones(len(pixels), pixels.dtype) @ pixels
    return sums


def _centre(pixels: Array, mean: Array, out: Array, grid: Grid) -> Array:
    """``out = pixels - mean``, the mean of these pixels, which goes to `mean`."""
    np.divide(_column_sums(pixels), pixels.dtype.type(len(pixels)), out=mean)
    np.subtract(grid.rows_of(pixels), np.tile(mean, grid.width), out=grid.rows_of(out))
    return out


def _merge(means: Array, sizes: Array) -> tuple[Array, Array]:
    """The mean of all, and how far each piece's is from it: (C,), (pieces, C) float64."""
    wide = means.astype(np.float64)
    mean: Array = sizes @ wide / sizes.sum()
    return mean, wide - mean
