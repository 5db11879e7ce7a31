"""Which thread does what: a convolution as stages of independent items.

Two ways to share a layer between threads, for either algorithm:

- *private*: each thread takes blocks of rows through all steps in its own scratch, which stays in
  its second-level cache. No thread waits for another. For layers with small weights.
- *shared*: all threads do one step, then the next, on one scratch. Each weight is then read once
  instead of once a block, and a product has all rows of the batch. For large weights, and for
  layers with few pixels, such as most of batch 1: products are shared by position or output part.
  Each step is a stage of its own, which on threads costs 70 microseconds: waking one, twice.

Where each worker is a process (`crew`), one packs only the shared weights that it multiplies.
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
from repvgg_ref.cpu.gemm import panel_products, panel_width
from repvgg_ref.cpu.layout import carve
from repvgg_ref.cpu.pool import Pool, Stage, Step, portion, prepared
from repvgg_ref.cpu.winograd import Tiles, Tiling

PRIVATE_TILES, PRIVATE_TILES_OF_THREADS = 64, 192  # threads want few calls rather than warm caches
PRIVATE_NUMBERS = 250_000  # columns and outputs of one block: 1 MB of float32
# Weights that every worker may read, once a block: on threads that is cheaper than two more stages.
PRIVATE_WEIGHTS, PRIVATE_WEIGHTS_OF_PROCESSES = 1_200_000, 300_000
SHARED_NUMBERS = 12_000_000  # scratch of all threads together: 48 MB of float32
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
    def macs(self) -> int:
        """Multiply-accumulates in direct form; all groups, all images."""
        pairs = self.channels * self.outputs // self.groups
        return self.images * self.height * self.width * self.kernel**2 * pairs

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
    def shared(self) -> bool:
        """Whether all workers use one scratch."""

    @property
    def scratch(self) -> int:
        """Numbers of scratch that the stages use, in all that is in this process."""

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
        seat: int | None = None,
    ) -> None:
        self.shape, self.threads, self.seat = shape, threads, seat
        self.tiling = Tiling(m, shape.stride, shape.height, shape.width)
        self.shared = self._shared()
        self.blocks = self._blocks()
        self.block = -(-self.strips // self.blocks)
        rows = self.block * self.tiling.tiles
        packed = {} if packed is None else packed
        inner, outputs = shape.channels // shape.groups, shape.outputs // shape.groups
        width = panel_width(inner, outputs, rows)
        square = self.tiling.t**2
        mine = range(square)
        if self.shared and seat is not None:
            mine = portion(square, seat, threads)
        key = (name, "winograd", m, width, mine)
        if key not in packed:
            packed[key] = winograd.transform_weight(
                weight, shape.groups, self.tiling, width, mine, pool
            )
        self.u, self.first = packed[key], mine.start

    @property
    def padded(self) -> tuple[int, int]:  # noqa: D102  (Convolution)
        return self.tiling.padded

    @property
    def scratch(self) -> int:  # noqa: D102  (Convolution)
        return self._floats * scratches(self.shared, self.threads, self.seat)

    def stages(  # noqa: D102  (Convolution)
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        bias, tiles = bias_row(bias, self.shape.width), winograd.input_tiles(x, self.tiling, border)
        if self.shared:
            for start in range(0, self.strips, self.block):
                stop = min(start + self.block, self.strips)
                yield from self._together(tiles, y, bias, arena, start, stop, relu)
            return

        def block(worker: int, item: int) -> list[Step]:
            some = portion(self.strips, item, self.blocks)
            start, stop = some.start, some.stop
            s = self._scratch(arena[scratch_of(worker, self.seat) * self._floats :])
            strips = slice(0, stop - start)
            return [
                *tiles.transform(start, stop, s.rows[strips], s.v[:, :, strips]),
                *winograd.multiply(self.u, s, stop - start, 0),
                *winograd.output_transform(y, bias, self.tiling, start, stop, 0, s, relu=relu),
            ]

        yield prepared(self.blocks, block)

    def _together(
        self, tiles: Tiles, y: Array, bias: Row, arena: Array, start: int, stop: int, relu: bool
    ) -> Iterator[Stage]:
        """All threads on strips `start` to `stop`: transform, multiply, transform."""
        s, square = self._scratch(arena), self.tiling.t**2
        items = share(self.threads, self.seat, (stop - start) * self.tiling.tiles)
        blocks = min(items, stop - start)

        def transform_in(worker: int, item: int) -> list[Step]:
            some = portion(stop - start, item, blocks)
            block = slice(some.start, some.stop)
            return tiles.transform(
                start + some.start, start + some.stop, s.rows[block], s.v[:, :, block]
            )

        def multiply(worker: int, item: int) -> list[Step]:
            some = portion(square, item, items)
            u = self.u[some.start - self.first : some.stop - self.first]
            return winograd.multiply(u, s, stop - start, some.start)

        def transform_out(worker: int, item: int) -> list[Step]:
            some = portion(stop - start, item, blocks)
            first, last = start + some.start, start + some.stop
            return winograd.output_transform(
                y, bias, self.tiling, first, last, some.start, s, relu=relu
            )

        yield prepared(blocks, transform_in)
        yield prepared(items, multiply)
        yield prepared(blocks, transform_out)

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
        few = PRIVATE_WEIGHTS if self.seat is None else PRIVATE_WEIGHTS_OF_PROCESSES
        if self.tiling.t**2 * per_group * self.shape.outputs <= few:
            return self.strips < self.threads
        tiles = self.strips * self.tiling.tiles
        return per_group > 192 or tiles < 4 * self.threads * PRIVATE_TILES

    def _blocks(self) -> int:
        """Into how many parts of nearly one size strips are cut that are in scratch together."""
        shape, tiles = self.shape, self.tiling.tiles
        if self.shared:
            strip = self.tiling.t**2 * tiles * (shape.channels + shape.outputs)
            blocks = -(-self.strips * strip // SHARED_NUMBERS)
        else:
            many = self.threads > 1 and self.seat is None
            most = PRIVATE_TILES_OF_THREADS if many else PRIVATE_TILES
            blocks = -(-self.strips // max(1, most // tiles))
            blocks = -(-blocks // self.threads) * self.threads
        return min(blocks, self.strips)


class DirectConvolution:
    """Windows gathered in cache and multiplied once; the arithmetic is in `direct`."""

    def __init__(
        self,
        shape: ConvShape,
        weight: Array,
        threads: int,
        packed: Packed | None = None,
        name: str = "",
        seat: int | None = None,
    ) -> None:
        self.shape, self.threads, self.seat = shape, threads, seat
        self.window = Window(
            shape.kernel, shape.stride, shape.dilation, shape.groups, shape.height, shape.width
        )
        self.inner = shape.kernel**2 * shape.channels  # K K C, all groups together
        self.rows = shape.images * shape.height
        self.shared = weight.size > 1_000_000 or self.rows < threads
        self.blocks = self._blocks()
        self.block = -(-self.rows // self.blocks)
        packed = {} if packed is None else packed
        width = self._width()
        mine = range(shape.outputs // width)
        if self.shared and seat is not None:
            mine = portion(len(mine), seat, threads)
        key = (name, "direct", width, mine)
        if key not in packed:
            rows = weight[mine.start * width : mine.stop * width]
            packed[key] = direct.pack_weight(rows, max(1, len(mine)))
        self.packed, self.first, self.width = packed[key], mine.start, width

    @property
    def padded(self) -> tuple[int, int]:  # noqa: D102  (Convolution)
        return self.shape.reach

    @property
    def scratch(self) -> int:  # noqa: D102  (Convolution)
        return self._floats * scratches(self.shared, self.threads, self.seat)

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
        # (panels, K K C/G, width) -> (G, panels, K K C/G, width)
        panels = self.packed.reshape(self.shape.groups, -1, *self.packed.shape[1:])

        def block(worker: int, item: int) -> list[Step]:
            some = portion(self.rows, item, self.blocks)
            start, stop = some.start, some.stop
            scratch = arena[scratch_of(worker, self.seat) * self._floats :]
            columns, products = self._scratch(scratch, stop - start)
            if bias is None:
                products = self._pixels(y, start, stop)
            return [
                *direct.gather(x, window, start, stop, columns),
                *panel_products(columns.transpose(1, 0, 2), panels, self._grouped(products)),
                *direct.finish(products, bias, y, start, stop, relu=relu),
            ]

        yield prepared(self.blocks, block)

    def _together(
        self, gather: Gather, y: Array, bias: Row, arena: Array, start: int, stop: int, relu: bool
    ) -> Iterator[Stage]:
        """All threads on rows `start` to `stop`: gather by rows, multiply by output parts."""
        columns, products = self._scratch(arena, stop - start)
        if bias is None:
            products = self._pixels(y, start, stop)
        items = min(share(self.threads, self.seat, len(columns)), stop - start)
        width = self.width
        parts = self.shape.outputs // width
        beside = None if bias is None else bias.reshape(self.shape.width, -1)

        def fill(worker: int, item: int) -> list[Step]:
            some = portion(stop - start, item, items)
            held = columns[some.start * self.shape.width : some.stop * self.shape.width]
            return gather(start + some.start, start + some.stop, held)

        def multiply(worker: int, part: int) -> list[Step]:
            seen = columns[:, part * self.shape.groups // parts]
            outputs = slice(part * width, (part + 1) * width)
            held = products[:, outputs]
            its_bias = None if beside is None else beside[:, outputs]
            product = partial(np.matmul, seen, self.packed[part - self.first], out=held)
            finish = direct.finish(held, its_bias, y[..., outputs], start, stop, relu=relu)
            return [product, *finish]

        yield prepared(items, fill)
        yield prepared(parts, multiply)

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
            return panel_width(inner, outputs, rows)
        return outputs // math.gcd(outputs, -(-self.threads // groups))

    def _blocks(self) -> int:
        row = self.shape.width * (self.inner + self.shape.outputs)
        limit = SHARED_NUMBERS if self.shared else PRIVATE_NUMBERS
        blocks = -(-self.rows // max(1, limit // row))
        if not self.shared:
            blocks = -(-blocks // self.threads) * self.threads
        return min(blocks, self.rows)


def scratches(shared: bool, threads: int, seat: int | None) -> int:
    """How many scratches there are in this process: one that is shared, or one a worker here."""
    return 1 if shared or seat is not None else threads


def scratch_of(worker: int, seat: int | None) -> int:
    """Which of them is that of `worker`."""
    return worker if seat is None else 0


def share(threads: int, seat: int | None, rows: int) -> int:
    """Into how many items a step is cut.

    On threads into more than these, so that a slow one can do fewer. One thread needs no items, and
    a step of few rows is over before it is shared out. A process has one item.
    """
    fixed = threads == 1 or seat is not None or rows < 100
    return threads if fixed else ITEMS_A_THREAD * threads


def bias_row(bias: Array | None, width: int) -> Row:
    """(O,) -> (W * O,), the bias of every number in a row of pixels."""
    return None if bias is None else np.tile(bias, width)
