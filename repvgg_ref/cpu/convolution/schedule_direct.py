"""Which thread does what in a direct convolution; see `schedule`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import direct
from repvgg_ref.cpu.convolution.direct import Window
from repvgg_ref.cpu.convolution.gemm import panel_products, panel_width
from repvgg_ref.cpu.convolution.layout import carve
from repvgg_ref.cpu.convolution.schedule import (
    SHARED_NUMBERS,
    ConvShape,
    Packed,
    Row,
    bias_row,
    scratch_of,
    scratches,
    share,
)
from repvgg_ref.cpu.workers.pool import Stage, Step, portion, prepared

PRIVATE_NUMBERS = 250_000  # columns and outputs of one block: 1 MB of float32
SHARED_WEIGHTS = 1_000_000  # from so many on

Gather = Callable[[int, int, Array], list[Step]]
"""`direct.gather` for given x and window: first row, end, columns."""


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
        self.shared = weight.size > SHARED_WEIGHTS or self.rows < threads
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
