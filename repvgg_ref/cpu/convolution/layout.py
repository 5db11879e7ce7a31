"""How images lie in memory: NHWC inside a border of zeros, rows of a batch counted through."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from repvgg_ref.arrays import Array


def carve(flat: Array, shape: tuple[int, ...]) -> Array:
    """The first numbers of `flat`, in `shape`."""
    return flat[: math.prod(shape)].reshape(shape)


def strided(
    x: Array, shape: tuple[int, ...], strides: tuple[int, ...], first: tuple[int, ...] = ()
) -> Array:
    """`numpy.lib.stride_tricks.as_strided` from element `first` on; quick if `x` is contiguous.

    A block of work is described by a dozen views: made by `as_strided`, these take as long as the
    block's products.
    """
    if x.flags.c_contiguous:
        offset = sum(at * step for at, step in zip(first, x.strides, strict=False))
        return np.ndarray(shape, x.dtype, x, offset, strides)
    return as_strided(x[tuple(slice(at, None) for at in first)], shape, strides)


def border_views(padded: Array, height: int, width: int, border: int) -> list[Array]:
    """What of (N, Hp, Wp, C) lies around the image of height x width at (border, border)."""
    inside = slice(border, border + height)
    around = [
        padded[:, :border],
        padded[:, border + height :],
        padded[:, inside, :border],
        padded[:, inside, border + width :],
    ]
    return [view for view in around if view.size]


def interior(padded: Array, height: int, width: int, border: int) -> Array:
    """The image inside the border, (N, H, W, C): a view."""
    return padded[:, border : border + height, border : border + width]


def image_runs(start: int, stop: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut rows `start` to `stop` of a batch, `rows` an image, at the borders between images.

    Yields ``(image, first, last, place)``: rows `first` to `last` of `image` are the ones at
    `place` and after it, counted from `start`.
    """
    row = start
    while row < stop:
        image, first = divmod(row, rows)
        last = min(rows, first + stop - row)
        yield image, first, last, row - start
        row += last - first


def image_blocks(start: int, stop: int, rows: int) -> Iterator[tuple[slice, int, int, slice]]:
    """Cut rows `start` to `stop` of a batch, `rows` an image, into whole images and parts of one.

    Yields ``(images, first, last, place)``: rows `first` to `last` of each of `images` are the ones
    at `place`, counted from `start`. All whole images come together, so that one NumPy call does
    them all.
    """
    row = start
    while row < stop:
        image, first = divmod(row, rows)
        last = min(rows, first + stop - row)
        count = max(1, (stop - row) // rows) if first == 0 else 1
        end = row + count * (last - first)
        yield slice(image, image + count), first, last, slice(row - start, end - start)
        row = end


def by_image(rows: Array, images: slice) -> Array:
    """(images * rows, ...) -> (images, rows, ...): a view."""
    count = images.stop - images.start
    return rows.reshape(count, len(rows) // count, *rows.shape[1:])
