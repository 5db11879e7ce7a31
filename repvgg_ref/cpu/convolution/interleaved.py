"""A dilated convolution as one without dilation: its pixels, every d-th, are pictures of their own.

Output pixel p reads pixels ``p + d t``: those of its own remainder modulo d, and no others. So the
``d x d`` pictures of every d-th row and column go through a convolution with neighbouring taps, for
which there are Winograd's fast algorithms. Two copies of the image are what that costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.layout import carve
from repvgg_ref.cpu.convolution.schedule import ConvShape, Staged
from repvgg_ref.cpu.workers.pool import Stage, Step, prepared


def parted(shape: ConvShape) -> ConvShape:
    """The convolution of the pictures of every d-th pixel, the largest of which says their size."""
    apart = shape.dilation
    height, width = -(-shape.height // apart), -(-shape.width // apart)
    return replace(shape, images=shape.images * apart**2, height=height, width=width, dilation=1)


class Interleaved:
    """A `Staged` convolution of stride 1 and some dilation; `make` makes the one it consists of."""

    shared = True  # all its pictures lie in scratch that every worker sees

    def __init__(self, shape: ConvShape, make: Callable[[ConvShape], Staged]) -> None:
        self.shape, self.padded = shape, shape.reach
        self._inner = make(parted(shape))
        inner = self._inner.shape
        size = (max(pair) for pair in zip(self._inner.padded, inner.reach, strict=True))
        self._read = (inner.images, *size, inner.channels)
        self._written = (inner.images, inner.height, inner.width, inner.outputs)

    @property
    def scratch(self) -> int:
        """Numbers of scratch: the pictures before and after, and what their convolution needs."""
        return math.prod(self._read) + math.prod(self._written) + self._inner.scratch

    def stages(
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        """As those of `schedule.Convolution`."""
        before = carve(arena, self._read)
        arena = arena[before.size :]
        after = carve(arena, self._written)
        arena = arena[after.size :]
        apart = self.shape.dilation

        def place(item: int) -> tuple[int, int, int]:
            """Image, and the first row and column of a picture."""
            image, rest = divmod(item, apart**2)
            return image, *divmod(rest, apart)

        def gather(worker: int, item: int) -> list[Step]:
            image, row, column = place(item)
            (to, rows), (across, columns) = (
                _met(first, apart, border, pixels, size)
                for first, pixels, size in zip(
                    (row, column), x.shape[1:3], before.shape[1:3], strict=True
                )
            )
            return [
                partial(before[item].fill, 0),
                partial(_copy, x[image, rows, columns], before[item, to, across]),
            ]

        def scatter(worker: int, item: int) -> list[Step]:
            image, row, column = place(item)
            its = y[image, row::apart, column::apart]
            return [partial(_copy, after[item, : its.shape[0], : its.shape[1]], its)]

        yield prepared(len(before), gather)
        yield from self._inner.stages(before, after, bias, arena, relu=relu)
        yield prepared(len(after), scatter)


def _met(first: int, apart: int, border: int, pixels: int, size: int) -> tuple[slice, slice]:
    """Where rows of x stand in a picture that begins at row `first` of x with its border.

    Row s of the picture is row ``first + apart s - border`` of x.
    """
    start = max(0, -(-(border - first) // apart))
    begin = first + apart * start - border
    count = max(0, min(size - start, -(-(pixels - begin) // apart)))
    return slice(start, start + count), slice(begin, begin + apart * count, apart)


def _copy(source: Array, to: Array) -> None:
    to[...] = source
