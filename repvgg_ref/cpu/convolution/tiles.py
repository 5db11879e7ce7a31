"""Tiles of a batch, laid out and written by matrix products; what all Winograd forms share.

A transform is ``matrix d matrix^T`` for each tile d, one dimension after the other: first whole
rows, so that what neighbouring tiles share is transformed once, then columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import empty_panels
from repvgg_ref.cpu.convolution.layout import by_image, image_blocks, strided
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, run_all
from repvgg_ref.exact.cook_toom import MinimalFilter

CACHED_NUMBERS = 120_000  # of float64, beside which all else fits the second-level cache


class Transforms(NamedTuple):
    """``B^T``, ``A^T``, and that with a column of ones for the bias; G in float64."""

    bt: Array
    at: Array
    at_bias: Array
    g: Array


def rounded(exact: MinimalFilter, dtype: Any) -> Transforms:
    """Exact matrices, rounded once to `dtype`."""
    a, b, g = (np.array([[float(x) for x in row] for row in rows]) for rows in exact)
    bt, at = (matrix.T.astype(dtype) for matrix in (b, a))
    at_bias = np.concatenate([at, np.ones((len(at), 1), dtype)], axis=1)  # columns contiguous
    return Transforms(np.ascontiguousarray(bt), np.ascontiguousarray(at), at_bias, g)


class Tiles(NamedTuple):
    """The tiles of a batch, each to become ``matrix d matrix^T``; steps 1 and 2 for ``B^T``.

    Tile (i, j) begins `border` pixels above and left of pixel ``(step * i, step * j)``, and its
    rows are `apart` pixels apart. Outside of `x` there are zeros: a strip that reaches there meets
    fewer columns of the matrix.
    """

    x: Array  # (N, H, W, C), its last two axes contiguous
    matrix: Array  # (t, size)
    step: int
    border: int
    strips: int  # an image
    apart: int = 1

    def transform(self, start: int, stop: int, rows: Array, out: Array) -> list[Step]:
        """Strips `start` to `stop` of the batch.

        Parameters
        ----------
        rows : (stop - start, t, at least (tiles - 1) step + size, C) scratch, contiguous
        out : (t, t, stop - start, tiles, C) array
        """
        t, size = self.matrix.shape
        _, _, strips, tiles, channels = out.shape
        strip, row, pixel, number = rows.strides
        columns = strided(  # tile j begins `step` pixels right of tile j - 1
            rows,
            (t, strips, tiles, size, channels),
            (row, strip, self.step * pixel, pixel, number),
        )
        # (t, strips, tiles, t, C) = (t, size) @ (t, strips, tiles, size, C)
        second = partial(np.matmul, self.matrix, columns, out=out.transpose(0, 2, 3, 1, 4))
        pixels = (tiles - 1) * self.step + size
        return [*self.rows(start, stop, rows, pixels), second]

    def rows(self, start: int, stop: int, rows: Array, pixels: int) -> list[Step]:
        """``matrix d`` for whole rows of `pixels`, zeros left and right of them."""
        width, channels = self.x.shape[2:]
        border = self.border
        end = border + min(width, pixels - border)
        wide = (end - border) * channels
        around = rows[:, :, :border], rows[:, :, end:pixels]
        steps: list[Step] = [partial(side.fill, 0) for side in around if side.size]
        flat = rows.reshape(*rows.shape[:2], -1)[:, :, border * channels : border * channels + wide]
        image, row, _, number = self.x.strides
        for images, first, last, place in image_blocks(start, stop, self.strips):
            some, held = self.x[images], by_image(flat[place], images)
            for strips, seen in self._runs(first, last):
                read = strided(  # strip i begins `step` rows below strip i - 1
                    some,
                    (len(some), len(strips), seen.stop - seen.start, wide),
                    (image, self.step * row, self.apart * row, number),
                    (0, strips.start * self.step - border + self.apart * seen.start),
                )
                out = held[:, strips.start - first : strips.stop - first]
                steps.append(partial(np.matmul, self.matrix[:, seen], read, out=out))
        return steps

    def _runs(self, first: int, last: int) -> Iterator[tuple[range, slice]]:
        """Cut strips into runs that read the same rows of a tile from x, and which these are."""
        size, height, apart = self.matrix.shape[1], self.x.shape[1], self.apart
        reach = apart * (size - 1) + 1
        low = min(max(-(-self.border // self.step), first), last)
        high = max(low, min((height + self.border - reach) // self.step + 1, last))
        if low < high:
            yield range(low, high), slice(0, size)
        for strip in (*range(first, low), *range(high, last)):
            begin = strip * self.step - self.border
            above, end = max(0, -(begin // apart)), -((begin - height) // apart)
            yield range(strip, strip + 1), slice(above, min(size, end))


def rows_of_strips(
    matrix: Array, strips: Array, y: Array, first: int, last: int
) -> Iterator[tuple[Step, Array]]:
    """``matrix @ strip`` for strips `first` to `last` of each image, with the rows that it fills.

    Parameters
    ----------
    matrix : (m, k) array
    strips : (images, last - first, k, Wo * O) array
    y : (images, Ho, Wo, O) array, its last two axes contiguous
    """
    m, wide = len(matrix), strips.shape[3]
    image, row, _, number = y.strides
    whole = min(last, y.shape[1] // m)  # the lowest strip may reach below the image
    for begin, end, kept in ((first, whole, m), (max(first, whole), last, y.shape[1] % m)):
        if begin < end:
            out = strided(
                y,
                (len(y), end - begin, kept, wide),
                (image, m * row, row, number),
                (0, begin * m),
            )
            above = strips[:, begin - first : end - first]
            yield partial(np.matmul, matrix[:kept], above, out=out), out


def transform_weight(matrix: Array, weight: Array, width: int, pool: Pool | None) -> Array:
    """``matrix`` by the taps of each kernel in float64, rounded once, in panels of `width` outputs.

    (panels * width, C/G, 3, 3) -> (rows, panels, across * C/G, width) for a `matrix` (rows, 9) of
    whole kernels, across 1, or (rows, 3) of a kernel's rows, across 3. The caller works alone if
    there is no `pool`.
    """
    count, taps = matrix.shape
    across, inputs, panels = 9 // taps, weight.shape[1], len(weight) // width
    kernels = weight.reshape(panels, width, inputs, taps, across)
    u = empty_panels((count, panels, across * inputs, width), weight.dtype)
    by_tap = u.reshape(count, panels, across, inputs, width)
    some = max(1, CACHED_NUMBERS // (across * count * width))  # input channels
    blocks = -(-inputs // some)

    def transform(worker: int, item: int) -> None:
        panel, block = divmod(item, blocks)
        part = slice(block * some, (block + 1) * some)
        held = kernels[panel, :, part].transpose(2, 3, 1, 0).astype(np.float64, order="C")
        # (rows, across * some * width) = (rows, taps) @ (taps, across * some * width)
        product = matrix @ held.reshape(taps, -1)
        by_tap[:, panel, :, part] = product.reshape(count, across, -1, width)

    run_all(Stage(panels * blocks, transform), pool)
    return u
