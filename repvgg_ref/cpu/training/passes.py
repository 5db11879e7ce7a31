"""Passes over the pixels of a block, NHWC, a cache-sized piece at a time, on all threads.

What meets per channel or per pixel (moments, masks, affine maps, 1x1 products) is bound by memory,
so each pass does all it can to a piece while that lies in the second-level cache. `branches` says
what the passes are for. Pieces are whole rows of output pixels; a vector meets a row as (W * C,).

Sums come out the same, bit for bit, in every run with the same number of threads: a vector of sums
is kept for each piece, a matrix for each *share* of the pieces, and they are added in order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import direct
from repvgg_ref.cpu.convolution.direct import Window
from repvgg_ref.cpu.convolution.layout import carve, image_runs
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

    def piece(self, piece: int) -> Array:
        """(pixels, K * K * C): a view."""
        return self.grid.of(self.x if self.columns is None else self.columns, piece)


def make_inputs(grid: Grid, x: Array, window: Window) -> Inputs:
    """Gather once what is not x itself: three passes read it."""
    inputs = Inputs(grid, x, window, None)
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


class Moments(NamedTuple):
    """Mean (C,) and the sum of squares (C,) or products (G, C/G, C/G) about it, in float64."""

    mean: Array
    about_mean: Array


def channel_moments(y: Array, grid: Grid) -> Moments:
    """Mean of `y` and its squares about it, (O,) each.

    Within a piece about the piece's own mean, in the array's dtype; pieces are merged in float64
    (Chan, Golub & LeVeque 1983, equation 2.1): nothing large is ever subtracted from its like.
    """
    means = np.empty((grid.pieces, y.shape[3]), y.dtype)
    squares = np.empty_like(means)
    scratch = _scratch(grid, y.shape[3], 1, y.dtype)

    def share(worker: int, item: int) -> None:
        for piece in grid.share(item):
            held = grid.of(y, piece)
            centred = _centre(held, means[piece], carve(scratch[worker, 0], held.shape), grid)
            centred *= centred
            squares[piece] = _column_sums(centred)

    share_out(grid.shares, share)
    sizes = grid.sizes()
    mean, apart = _merge(means, sizes)
    return Moments(mean, squares.sum(axis=0, dtype=np.float64) + sizes @ apart**2)


def product_moments(inputs: Inputs) -> Moments:
    """Mean of x and its products about it, as `channel_moments`."""
    grid, channels, groups = inputs.grid, inputs.channels, inputs.window.groups
    dtype, shares = inputs.x.dtype, grid.shares
    means = np.empty((grid.pieces, channels), dtype)
    products = np.zeros((shares, groups, channels // groups, channels // groups), dtype)
    scratch = _scratch(grid, channels, 1, dtype)

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


def combine(
    y3: Array | None,
    scale: Array,
    inputs: Inputs,
    weight: Array | None,
    bias: Array,
    *,
    relu: bool,
) -> Array:
    """``[ReLU](scale y3 + x W + bias)``: vectors (O,), W (G, C/G, O/G), or one of the products."""
    grid = inputs.grid
    outputs = len(bias)
    y = memory.empty((grid.images, grid.height, grid.width, outputs), inputs.x.dtype)
    scratch = _scratch(grid, outputs, 1, y.dtype)
    scale, bias = _along_row(scale, grid), _along_row(bias, grid)

    def share(worker: int, item: int) -> None:
        for piece in grid.share(item):
            out = grid.of(y, piece)
            rows = grid.rows_of(out)
            if weight is not None:
                pointwise(inputs.piece(piece), weight, out)
            if y3 is not None:
                held = grid.rows_of(grid.of(y3, piece))
                scaled = (
                    rows if weight is None else grid.rows_of(carve(scratch[worker, 0], out.shape))
                )
                np.multiply(held, scale, out=scaled)
                if weight is not None:
                    rows += scaled
            rows += bias
            if relu:
                np.maximum(rows, 0, out=rows)

    share_out(grid.shares, share)
    return y


class GradientSums(NamedTuple):
    """Sums over pixels in float64, about the exact means."""

    total: Array  # (O,) of g
    with_y3: Array | None  # (O,) of g (y3 - mean)
    with_x: Array | None  # (G, C/G, O/G) of (x - mean)^T g


def gradient_sums(
    grad_y: Array,
    y: Array | None,
    y3: Array | None,
    mean_y3: Array | None,
    inputs: Inputs,
    mean_x: Array | None,
    g: Array | None,
) -> GradientSums:
    """``g = grad_y where y > 0``, kept in `g` if that is given, and what it sums to.

    Where `y` is None, g is grad_y itself.

    Sums with y3 and x are left out where there is no mean.
    """
    grid, outputs, groups = inputs.grid, grad_y.shape[3], inputs.window.groups
    shares, dtype = grid.shares, grad_y.dtype
    totals = np.empty((grid.pieces, outputs), dtype)
    with_y3 = np.empty_like(totals)
    with_x = np.zeros((shares, groups, inputs.channels // groups, outputs // groups), dtype)
    scratch = _scratch(grid, max(inputs.channels, outputs), 2, dtype)
    centre_y3, centre_x = (
        None if mean is None else _along_row(mean.astype(dtype), grid) for mean in (mean_y3, mean_x)
    )

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        product = np.empty_like(with_x[0])
        for piece in grid.share(item):
            under = grid.of(grad_y, piece)
            if y is not None:  # y is never negative; NaN passes its gradient on
                masked = carve(two, under.shape) if g is None else grid.of(g, piece)
                under = np.multiply(under, grid.of(y, piece) != 0, out=masked)
            totals[piece] = _column_sums(under)
            if y3 is not None and centre_y3 is not None:
                centred = carve(one, under.shape)
                held = grid.rows_of(grid.of(y3, piece))
                np.subtract(held, centre_y3, out=grid.rows_of(centred))
                centred *= under
                with_y3[piece] = _column_sums(centred)
            if centre_x is not None:
                seen = inputs.piece(piece)
                centred = carve(one, seen.shape)
                np.subtract(grid.rows_of(seen), centre_x, out=grid.rows_of(centred))
                correlate(centred, under, product)
                with_x[item] += product

    share_out(grid.shares, share)
    total = totals.sum(axis=0, dtype=np.float64)
    of_y3, of_x = None, None
    if mean_y3 is not None:  # the means were rounded to the array's dtype: what that changed
        of_y3 = with_y3.sum(axis=0, dtype=np.float64) + (mean_y3.astype(dtype) - mean_y3) * total
    if mean_x is not None:
        rounded = (mean_x.astype(dtype) - mean_x).reshape(groups, -1, 1)
        of_x = with_x.sum(axis=0, dtype=np.float64) + rounded * total.reshape(groups, 1, -1)
    return GradientSums(total, of_y3, of_x)


def through_norm(g: Array, y3: Array, of_g: Array, of_y3: Array, shift: Array, grid: Grid) -> Array:
    """``of_g g - of_y3 y3 - shift``: vectors (O,)."""
    out = memory.empty(g.shape, g.dtype)
    scratch = _scratch(grid, y3.shape[3], 1, g.dtype)
    of_g, of_y3, shift = (_along_row(vector, grid) for vector in (of_g, of_y3, shift))

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
    grad_x: Array, g: Array, from_g: Array, inputs: Inputs, from_x: Array, bias: Array
) -> None:
    """``grad_x += g from_g - x from_x + bias`` where x was seen, in place.

    Parameters
    ----------
    from_g : (G, O/G, C/G) array; C here and below as in `Inputs`, K * K * C
    from_x : (G, C/G, C/G) array
    bias : (C,) array
    """
    grid, window = inputs.grid, inputs.window
    if window.kernel > 1:  # windows overlap: an image is one thread's
        grid = grid._replace(rows=grid.height, shares=grid.images)
        inputs = inputs._replace(grid=grid)
    scratch = _scratch(grid, inputs.channels, 2, g.dtype)
    bias = _along_row(bias, grid)

    def share(worker: int, item: int) -> None:
        one, two = scratch[worker]
        for piece in grid.share(item):
            under, seen = grid.of(g, piece), inputs.piece(piece)
            total, other = carve(one, seen.shape), carve(two, seen.shape)
            pointwise(under, from_g, total)
            pointwise(seen, from_x, other)
            total -= other
            rows = grid.rows_of(total)
            rows += bias
            start, stop = grid.span(piece)
            for n, first, last, place in image_runs(start, stop, grid.height):
                part = rows[place : place + last - first]
                direct.add_back(part, window, range(first, last), grad_x[n])

    share_out(grid.shares, share)


def _scratch(grid: Grid, channels: int, arrays: int, dtype: object) -> Array:
    numbers = grid.rows * grid.width * channels
    return memory.empty((pool().threads, arrays, numbers), dtype)


def _along_row(vector: Array, grid: Grid) -> Array:
    """(C,) -> (W * C,), to meet a row of pixels; `numpy.tile` takes five times as long."""
    return np.broadcast_to(vector, (grid.width, len(vector))).reshape(-1)


def _column_sums(pixels: Array) -> Array:
    """(pixels, C) -> (C,), as a product with a row of ones: the fastest sum that there is."""
    sums: Array = np.ones(len(pixels), pixels.dtype) @ pixels
    return sums


def _centre(pixels: Array, mean: Array, out: Array, grid: Grid) -> Array:
    """``out = pixels - mean``, the mean of these pixels, which goes to `mean`."""
    np.divide(_column_sums(pixels), pixels.dtype.type(len(pixels)), out=mean)
    np.subtract(grid.rows_of(pixels), _along_row(mean, grid), out=grid.rows_of(out))
    return out


def _merge(means: Array, sizes: Array) -> tuple[Array, Array]:
    """The mean of all, and how far each piece's is from it: (C,), (pieces, C) float64."""
    wide = means.astype(np.float64)
    mean: Array = sizes @ wide / sizes.sum()
    return mean, wide - mean
