"""Which thread does what: a convolution as stages of independent items.

Two ways to share a layer between threads, for either algorithm:

- *private*: each thread takes blocks of rows through all steps in its own scratch, which stays in
  its second-level cache. No thread waits for another. For layers with small weights.
- *shared*: all threads do one step, then the next, on one scratch. Each weight is then read once
  instead of once a block, and a product has all rows of the batch. For large weights, and for
  layers with few pixels, such as most of batch 1: products are shared by position or output part.
  Each step is a stage of its own, and a stage costs 70 microseconds: waking a thread, twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import direct, winograd
from repvgg_ref.cpu.direct import Window
from repvgg_ref.cpu.gemm import panel_products, panel_width, to_panels
from repvgg_ref.cpu.layout import carve
from repvgg_ref.cpu.pool import Pool, Stage, Step, prepared
from repvgg_ref.cpu.winograd import Tiles, Tiling

PRIVATE_TILES = 64
PRIVATE_NUMBERS = 200_000  # columns of one block: 0.8 MB of float32
PRIVATE_WEIGHTS = 1_200_000  # that every thread may read: cheaper than two more stages
SHARED_NUMBERS = 10_000_000  # scratch of all threads together: 40 MB of float32
ITEMS_A_THREAD = 4


Gather = Callable[[int, int, Array], list[Step]]
"""`direct.gather` for given x and window: first row, end, columns."""

Row = Array | None
"""A bias repeated for each pixel of a row, (W * O,), if there is one."""

Packed = dict[tuple[Any, ...], Array]
"""Packed weights by layer, algorithm and form, so that plans of several shapes share them."""


@dataclass(frozen=True)
class ConvShape:
    """A convolution with padding ``dilation * (K // 2)``: `height` and `width` of its output."""

    images: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def border(self) -> int:
        """Width of the border of zeros that the input has on each side."""
        return self.dilation * (self.kernel // 2)

    @property
    def reach(self) -> tuple[int, int]:
        """Height and width that the windows cover, border included."""
        span = self.dilation * (self.kernel - 1) + 1
        return (self.height - 1) * self.stride + span, (self.width - 1) * self.stride + span


class Convolution(Protocol):
    """An algorithm with its weights packed, for one shape and one number of threads."""

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width the input buffer must have, at least."""

    @property
    def scratch(self) -> int:
        """Numbers of scratch that the stages use."""

    def stages(
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        """The work, done stage after stage: from (N, H, W, C) to (N, Ho, Wo, O).

        `border` is how many pixels of zeros lie around `x` that it does not hold itself; 0 where
        it is a buffer of the size `padded`. Without a bias `y` is contiguous and there is no ReLU.
        """


class WinogradConvolution:
    """F(m, 3) with stride 1; the mathematics is in `winograd`."""

    def __init__(
        self,
        shape: ConvShape,
        weight: Array,
        m: int,
        threads: int,
        packed: Packed | None = None,
        name: str = "",
        pool: Pool | None = None,
    ) -> None:
        self.shape, self.threads = shape, threads
        self.tiling = Tiling(m, shape.stride, shape.height, shape.width)
        self.shared = self._shared()
        self.block = self._block()
        rows = self.block * self.tiling.tiles
        packed = {} if packed is None else packed
        inner, outputs = shape.channels // shape.groups, shape.outputs // shape.groups
        width = panel_width(inner, outputs, rows)
        key = (name, "winograd", m, width)
        if key not in packed:
            packed[key] = winograd.transform_weight(weight, shape.groups, self.tiling, width, pool)
        self.u = packed[key]

    @property
    def padded(self) -> tuple[int, int]:  # noqa: D102  (Convolution)
        return self.tiling.padded

    @property
    def scratch(self) -> int:  # noqa: D102  (Convolution)
        return self._floats * (1 if self.shared else self.threads)

    def stages(  # noqa: D102  (Convolution)
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        bias, tiles = bias_row(bias, self.shape.width), winograd.input_tiles(x, self.tiling, border)
        if self.shared:
            for start in range(0, self.strips, self.block):
                stop = min(start + self.block, self.strips)
                yield from self._together(tiles, y, bias, arena, start, stop, relu)
            return
        scratches = [self._scratch(arena[k * self._floats :]) for k in range(self.threads)]

        def block(worker: int, item: int) -> list[Step]:
            start, stop = item * self.block, min((item + 1) * self.block, self.strips)
            s, strips = scratches[worker], slice(0, stop - start)
            return [
                *tiles.transform(start, stop, s.rows[strips], s.v[:, :, strips]),
                *winograd.multiply(self.u, s, stop - start, 0, len(self.u)),
                *winograd.output_transform(y, bias, self.tiling, start, stop, 0, s, relu=relu),
            ]

        yield prepared(-(-self.strips // self.block), block)

    def _together(
        self, tiles: Tiles, y: Array, bias: Row, arena: Array, start: int, stop: int, relu: bool
    ) -> Iterator[Stage]:
        """All threads on strips `start` to `stop`: transform, multiply, transform."""
        s = self._scratch(arena)
        items = share(self.threads, (stop - start) * self.tiling.tiles)
        few = -(-(stop - start) // items)
        positions = -(-len(self.u) // items)

        def strips(item: int) -> tuple[int, int, int]:
            return start + item * few, min(start + (item + 1) * few, stop), item * few

        def transform_in(worker: int, item: int) -> list[Step]:
            first, last, at = strips(item)
            block = slice(at, at + last - first)
            return tiles.transform(first, last, s.rows[block], s.v[:, :, block])

        def multiply(worker: int, item: int) -> list[Step]:
            end = min((item + 1) * positions, len(self.u))
            return winograd.multiply(self.u, s, stop - start, item * positions, end)

        def transform_out(worker: int, item: int) -> list[Step]:
            return winograd.output_transform(y, bias, self.tiling, *strips(item), s, relu=relu)

        yield prepared(-(-(stop - start) // few), transform_in)
        yield prepared(-(-len(self.u) // positions), multiply)
        yield prepared(-(-(stop - start) // few), transform_out)

    @property
    def strips(self) -> int:
        """Rows of tiles in the batch."""
        return self.shape.images * self.tiling.strips

    @cached_property
    def _floats(self) -> int:
        shape = self.shape
        return winograd.scratch_floats(self.tiling, self.block, shape.channels, shape.outputs)

    def _scratch(self, arena: Array) -> winograd.Scratch:
        shape = self.shape
        return winograd.scratch(arena, self.tiling, self.block, shape.channels, shape.outputs)

    def _shared(self) -> bool:
        per_group = self.shape.channels // self.shape.groups
        if self.tiling.t**2 * per_group * self.shape.outputs <= PRIVATE_WEIGHTS:
            return self.strips < self.threads
        tiles = self.strips * self.tiling.tiles
        return per_group > 192 or tiles < 4 * self.threads * PRIVATE_TILES

    def _block(self) -> int:
        """Strips that are in scratch at a time; blocks of nearly one size, and one a thread."""
        shape, tiles = self.shape, self.tiling.tiles
        if self.shared:
            strip = self.tiling.t**2 * tiles * (shape.channels + shape.outputs)
            blocks = -(-self.strips * strip // SHARED_NUMBERS)
        else:
            blocks = -(-self.strips // max(1, PRIVATE_TILES // tiles))
            blocks = -(-blocks // self.threads) * self.threads
        return -(-self.strips // min(blocks, self.strips))


class DirectConvolution:
    """Windows gathered in cache and multiplied once; the arithmetic is in `direct`."""

    def __init__(
        self,
        shape: ConvShape,
        weight: Array,
        threads: int,
        packed: Packed | None = None,
        name: str = "",
    ) -> None:
        self.shape, self.threads = shape, threads
        self.window = Window(
            shape.kernel, shape.stride, shape.dilation, shape.groups, shape.height, shape.width
        )
        self.inner = shape.kernel**2 * shape.channels  # K K C, all groups together
        self.rows = shape.images * shape.height
        self.shared = weight.size > 1_000_000 or self.rows < threads
        self.block = self._block()
        packed = {} if packed is None else packed
        width = self._width()
        key = (name, "direct", width)
        if key not in packed:
            packed[key] = to_panels(direct.pack_weight(weight, shape.groups), width)
        self.packed = packed[key]  # (G, panels, K K C/G, width)

    @property
    def padded(self) -> tuple[int, int]:  # noqa: D102  (Convolution)
        return self.shape.reach

    @property
    def scratch(self) -> int:  # noqa: D102  (Convolution)
        return self._floats * (1 if self.shared else self.threads)

    def stages(  # noqa: D102  (Convolution)
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        bias, window = bias_row(bias, self.shape.width), self.window._replace(border=border)
        if self.shared:
            for start in range(0, self.rows, self.block):
                stop = min(start + self.block, self.rows)
                gather = partial(direct.gather, x, window)
                yield from self._together(gather, y, bias, arena, start, stop, relu)
            return

        def block(worker: int, item: int) -> list[Step]:
            start, stop = item * self.block, min((item + 1) * self.block, self.rows)
            columns, products = self._scratch(arena[worker * self._floats :], stop - start)
            if bias is None:
                products = self._pixels(y, start, stop)
            return [
                *direct.gather(x, window, start, stop, columns),
                *panel_products(columns.transpose(1, 0, 2), self.packed, self._grouped(products)),
                *direct.finish(products, bias, y, start, stop, relu=relu),
            ]

        yield prepared(-(-self.rows // self.block), block)

    def _together(
        self, gather: Gather, y: Array, bias: Row, arena: Array, start: int, stop: int, relu: bool
    ) -> Iterator[Stage]:
        """All threads on rows `start` to `stop`: gather by rows, multiply by output parts."""
        columns, products = self._scratch(arena, stop - start)
        if bias is None:
            products = self._pixels(y, start, stop)
        few = -(-(stop - start) // share(self.threads, len(columns)))
        groups, panels, _, width = self.packed.shape
        beside = None if bias is None else bias.reshape(self.shape.width, -1)

        def fill(worker: int, item: int) -> list[Step]:
            first, last = start + item * few, min(start + (item + 1) * few, stop)
            begin, end = ((row - start) * self.shape.width for row in (first, last))
            return gather(first, last, columns[begin:end])

        def multiply(worker: int, part: int) -> list[Step]:
            group, panel = divmod(part, panels)
            outputs = slice(part * width, (part + 1) * width)
            held = products[:, outputs]
            its_bias = None if beside is None else beside[:, outputs]
            product = partial(np.matmul, columns[:, group], self.packed[group, panel], out=held)
            finish = direct.finish(held, its_bias, y[..., outputs], start, stop, relu=relu)
            return [product, *finish]

        yield prepared(-(-(stop - start) // few), fill)
        yield prepared(groups * panels, multiply)

    def _pixels(self, y: Array, start: int, stop: int) -> Array:
        """Output rows `start` to `stop` of the batch, (pixels, O)."""
        pixels = y.reshape(-1, self.shape.outputs)
        return pixels[start * self.shape.width : stop * self.shape.width]

    def _grouped(self, products: Array) -> Array:
        """(pixels, O) -> (G, pixels, O/G)."""
        return products.reshape(len(products), self.shape.groups, -1).transpose(1, 0, 2)

    @cached_property
    def _floats(self) -> int:
        return self.block * self.shape.width * (self.inner + self.shape.outputs)

    def _scratch(self, arena: Array, rows: int) -> tuple[Array, Array]:
        shape, pixels = self.shape, rows * self.shape.width
        columns = carve(arena, (pixels, shape.groups, self.inner // shape.groups))
        return columns, carve(arena[columns.size :], (pixels, shape.outputs))

    def _width(self) -> int:
        """Columns of a panel.

        Shared weights have a part for each thread and no more, since BLAS packs all pixels for it.
        """
        groups = self.shape.groups
        inner, outputs = self.inner // groups, self.shape.outputs // groups
        if not self.shared:
            rows = self.block * self.shape.width
            return panel_width(inner, outputs, rows, reused=True)
        return outputs // math.gcd(outputs, -(-self.threads // groups))

    def _block(self) -> int:
        row = self.shape.width * self.inner
        limit = SHARED_NUMBERS if self.shared else PRIVATE_NUMBERS
        blocks = -(-self.rows // max(1, limit // row))
        if not self.shared:
            blocks = -(-blocks // self.threads) * self.threads
        return -(-self.rows // min(blocks, self.rows))


def share(threads: int, rows: int) -> int:
    """Into how many items a step is cut: more than threads, so that a slow one can do fewer.

    One thread needs no items, and a step of few rows is over before it is shared out.
    """
    return threads if threads == 1 or rows < 100 else ITEMS_A_THREAD * threads


def bias_row(bias: Array | None, width: int) -> Row:
    """(O,) -> (W * O,), the bias of every number in a row of pixels."""
    return None if bias is None else np.tile(bias, width)
