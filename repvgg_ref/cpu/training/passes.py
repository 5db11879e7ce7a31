"""Passes over the pixels of a block, NHWC, a cache-sized piece at a time, on all threads.

What meets per channel or per pixel (moments, masks, affine maps, 1x1 products) is bound by memory,
so each pass does all it can to a piece while that lies in the second-level cache. `branches` says
what the passes are for. Pieces are whole rows of output pixels; a vector meets a row as (W * C,).

Sums come out the same, bit for bit, in every run with the same number of threads: a vector of sums
is kept for each piece, a matrix for each *share* of the pieces, and they are added in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import direct
from repvgg_ref.cpu.convolution.direct import Window
from repvgg_ref.cpu.convolution.layout import carve, image_runs
from repvgg_ref.cpu.convolution.schedule import rectified
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import pool, share_out

PIECE_NUMBERS = 393_216  # of one array: calls so long that threads seldom meet between them
PIECE_PIXELS = 256  # at least, so that adding a product (C, O) costs little beside forming it
SHARES_A_THREAD = 1


class Grid(NamedTuple):
    """The output pixels of a batch, cut into pieces of `rows` rows and `shares` of pieces."""

    images: int
    height: int
    width: int
    rows: int
    shares: int

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

    def share(self, share: int) -> range:
        """The pieces of a share."""
        first, end = (at * self.pieces // self.shares for at in (share, share + 1))
        return range(first, end)

    def sizes(self) -> Array:
        """Pixels of each piece, float64 (pieces,)."""
        spans = [self.span(piece) for piece in range(self.pieces)]
        return np.array([(stop - start) * self.width for start, stop in spans], np.float64)

    def of(self, images: Array, piece: int) -> Array:
        """A piece of a contiguous (N, H, W, C) array, as (pixels, C): a view."""
        start, stop = self.span(piece)
        flat: Array = images.reshape(-1, images.shape[3])
        return flat[start * self.width : stop * self.width]

    def rows_of(self, pixels: Array) -> Array:
        """(pixels, C) -> (rows, W * C), so that inner loops are long."""
        rows: Array = pixels.reshape(-1, self.width * pixels.shape[1])
        return rows


def make_grid(images: int, height: int, width: int, channels: int) -> Grid:
    """Pieces for arrays of up to `channels`."""
    pixels = max(PIECE_PIXELS, PIECE_NUMBERS // channels)
    pieces = -(-images * height * width // pixels)
    even = pool().threads * SHARES_A_THREAD
    rows = -(-images * height // (-(-pieces // even) * even))
    return Grid(images, height, width, rows, min(even, -(-images * height // rows)))


class Inputs(NamedTuple):
    """What the products with x take: for each output pixel the C numbers, or K * K * C, it sees."""

    grid: Grid
    x: Array
    window: Window  # its kernel is 1, or K for whole windows
    columns: Array | None  # (N, Ho, Wo, K * K * C), group by group; None where they are x

    @property
    def channels(self) -> int:
        """Numbers a pixel, K * K * C."""
        return self.window.kernel * self.window.kernel * int(self.x.shape[3])

    def products(self, outputs: int) -> Array:
        """Zeros for each share's products with `outputs` others, (shares, G, C/G, O/G)."""
        groups = self.window.groups
        split = self.channels // groups, outputs // groups
        return np.zeros((self.grid.shares, groups, *split), self.x.dtype)

    def piece(self, piece: int) -> Array:
        """(pixels, K * K * C): a view."""
        return self.grid.of(self.x if self.columns is None else self.columns, piece)


def gathered(inputs: Inputs) -> Inputs:
    """The same with what is not x itself gathered once: three passes read it."""
    grid, x, window = inputs.grid, inputs.x, inputs.window
    if window.kernel == window.stride == 1:
        return inputs
    columns = memory.empty((grid.images, grid.height, grid.width, inputs.channels), x.dtype)

    def gather(worker: int, piece: int) -> None:
        held = grid.of(columns, piece)
        for copy in direct.gather(
            x, window, *grid.span(piece), held.reshape(len(held), window.groups, -1)
        ):
            copy()

    share_out(grid.pieces, gather)
    return inputs._replace(columns=columns)


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


def combine(
    sums: Sequence[tuple[Array, Array | None]],
    inputs: Inputs | None,
    weight: Array | None,
    bias: Array,
    grid: Grid,
    *,
    relu: bool,
) -> Array:
    """``[ReLU](sum scale z + x W + bias)``: pairs (z, scale), vectors (O,), W (G, C/G, O/G).

    A scale of None is 1; without W there is no product.
    """
    outputs = len(bias)
    y = memory.empty((grid.images, grid.height, grid.width, outputs), bias.dtype)
    scratch = scratch_of(grid, outputs, 1, y.dtype)
    bias = along_row(bias, grid)
    terms = [(z, None if scale is None else along_row(scale, grid)) for z, scale in sums]

    def share(worker: int, item: int) -> None:
        for piece in grid.share(item):
            out = grid.of(y, piece)
            rows = grid.rows_of(out)
            if weight is not None and inputs is not None:
                pointwise(inputs.piece(piece), weight, out)
            for place, (z, scale) in enumerate(terms):
                held = grid.rows_of(grid.of(z, piece))
                if weight is None and place == 0:
                    np.multiply(held, 1 if scale is None else scale, out=rows)
                elif scale is None:
                    rows += held
                else:
                    scaled = grid.rows_of(carve(scratch[worker, 0], out.shape))
                    rows += np.multiply(held, scale, out=scaled)
            rows += bias
            if relu:
                rectified(rows, rows)()

    share_out(grid.shares, share)
    return y


class GradientSums(NamedTuple):
    """Sums over pixels in float64, about the exact means."""

    total: Array  # (O,) of g
    with_z: list[Array]  # (O,) of g (z - mean), for each z
    with_x: Array | None  # (G, C/G, O/G) of (x - mean)^T g


def gradient_sums(
    grad_y: Array,
    y: Array | None,
    centres: Sequence[tuple[Array, Array]],
    inputs: Inputs | None,
    mean_x: Array | None,
    g: Array | None,
    grid: Grid,
) -> GradientSums:
    """``g = grad_y where y > 0``, kept in `g` if that is given, and what it sums to.

    Where `y` is None, g is grad_y itself. `centres` are pairs (z, its mean); without a `mean_x` the
    sum with x is about 0.
    """
    outputs, dtype = grad_y.shape[3], grad_y.dtype
    totals = np.empty((grid.pieces, outputs), dtype)
    with_z = np.empty((len(centres), *totals.shape), dtype)
    with_x = None if inputs is None else inputs.products(outputs)
    channels = outputs if inputs is None else max(inputs.channels, outputs)
    scratch = scratch_of(grid, channels, 2, dtype)
    about = [(z, along_row(mean.astype(dtype), grid)) for z, mean in centres]
    about_x = None if mean_x is None else along_row(mean_x.astype(dtype), grid)

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        product = None if with_x is None else np.empty_like(with_x[0])
        for piece in grid.share(item):
            under = grid.of(grad_y, piece)
            if y is not None:  # y is never negative; NaN passes its gradient on
                masked = carve(two, under.shape) if g is None else grid.of(g, piece)
                under = np.multiply(under, grid.of(y, piece) != 0, out=masked)
            totals[piece] = column_sums(under)
            for (z, mean), sums in zip(about, with_z, strict=True):
                centred = carve(one, under.shape)
                np.subtract(grid.rows_of(grid.of(z, piece)), mean, out=grid.rows_of(centred))
                centred *= under
                sums[piece] = column_sums(centred)
            if inputs is not None and with_x is not None and product is not None:
                seen = inputs.piece(piece)
                if about_x is not None:
                    centred = carve(one, seen.shape)
                    np.subtract(grid.rows_of(seen), about_x, out=grid.rows_of(centred))
                    seen = centred
                correlate(seen, under, product)
                with_x[item] += product

    share_out(grid.shares, share)
    total = totals.sum(axis=0, dtype=np.float64)
    of_z = [
        sums.sum(axis=0, dtype=np.float64) + _rounded_off(mean, dtype) * total
        for sums, (_, mean) in zip(with_z, centres, strict=True)
    ]
    of_x = None if with_x is None else with_x.sum(axis=0, dtype=np.float64)
    if of_x is not None and mean_x is not None:
        groups = len(of_x)
        apart = _rounded_off(mean_x, dtype).reshape(groups, -1, 1)
        of_x = of_x + apart * total.reshape(groups, 1, -1)
    return GradientSums(total, of_z, of_x)


def _rounded_off(mean: Array, dtype: Any) -> Array:
    """What a mean lost when it was rounded to the array's dtype, with the sign that mends it."""
    lost: Array = mean.astype(dtype) - mean
    return lost


def accumulate(total: Array, other: Array) -> None:
    """``total += other``, contiguous arrays, on all threads."""
    flat, added = total.reshape(-1), other.reshape(-1)
    length = max(PIECE_NUMBERS, PIECE_PIXELS)
    pieces = -(-flat.size // length)

    def add(worker: int, piece: int) -> None:
        span = slice(piece * length, (piece + 1) * length)
        flat[span] += added[span]

    share_out(pieces, add)


def through_norm(g: Array, y3: Array, of_g: Array, of_y3: Array, shift: Array, grid: Grid) -> Array:
    """``of_g g - of_y3 y3 - shift``: vectors (O,)."""
    out = memory.empty(g.shape, g.dtype)
    scratch = scratch_of(grid, y3.shape[3], 1, g.dtype)
    of_g, of_y3, shift = (along_row(vector, grid) for vector in (of_g, of_y3, shift))

    def share(worker: int, item: int) -> None:
        for piece in grid.share(item):
            held, rows = (grid.rows_of(grid.of(each, piece)) for each in (y3, out))
            removed = np.multiply(held, of_y3, out=carve(scratch[worker, 0], held.shape))
            removed += shift
            np.multiply(grid.rows_of(grid.of(g, piece)), of_g, out=rows)
            rows -= removed

    share_out(grid.shares, share)
    return out


def add_pointwise(
    grad_x: Array, g: Array, from_g: Array, inputs: Inputs, from_x: Array | None, bias: Array
) -> None:
    """``grad_x += g from_g - x from_x + bias`` where x was seen, in place; x may have no part.

    Parameters
    ----------
    from_g : (G, O/G, C/G) array; C here and below as in `Inputs`, K * K * C
    from_x : (G, C/G, C/G) array, or None
    bias : (C,) array
    """
    grid, window = inputs.grid, inputs.window
    if window.kernel > 1:  # windows overlap: an image is one thread's
        grid = grid._replace(rows=grid.height, shares=grid.images)
        inputs = inputs._replace(grid=grid)
    scratch = scratch_of(grid, inputs.channels, 2, g.dtype)
    bias = along_row(bias, grid)

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        for piece in grid.share(item):
            under, seen = grid.of(g, piece), inputs.piece(piece)
            total, other = carve(one, seen.shape), carve(two, seen.shape)
            pointwise(under, from_g, total)
            if from_x is not None:
                pointwise(seen, from_x, other)
                total -= other
            rows = grid.rows_of(total)
            rows += bias
            start, stop = grid.span(piece)
            for n, first, last, place in image_runs(start, stop, grid.height):
                part = rows[place : place + last - first]
                direct.add_back(part, window, range(first, last), grad_x[n])

    share_out(grid.shares, share)


def scratch_of(grid: Grid, channels: int, arrays: int, dtype: object) -> Array:
    """Room for each thread to keep pieces of some arrays in."""
    numbers = grid.rows * grid.width * channels
    return memory.empty((pool().threads, arrays, numbers), dtype)


def along_row(vector: Array, grid: Grid) -> Array:
    """(C,) -> (W * C,), to meet a row of pixels; `numpy.tile` takes five times as long."""
    return np.broadcast_to(vector, (grid.width, len(vector))).reshape(-1)


def column_sums(pixels: Array) -> Array:
    """(pixels, C) -> (C,), as a product with a row of ones: the fastest sum that there is."""
    sums: Array = np.ones(len(pixels), pixels.dtype) @ pixels
    return sums
