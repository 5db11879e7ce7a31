"""Which thread does what in a 3x3 convolution with stride 2 by F(m, 2); see `schedule`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import winograd_stride_2 as stride_2
from repvgg_ref.cpu.convolution.gemm import panel_width
from repvgg_ref.cpu.convolution.schedule import (
    PRIVATE_WEIGHTS,
    PRIVATE_WEIGHTS_OF_PROCESSES,
    SHARED_NUMBERS,
    ConvShape,
    Packed,
    Row,
    bias_row,
    scratch_of,
    scratches,
    share,
)
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, portion, prepared

# Scratch of one block, 2.4 MB of float32: half of it is a thread's second-level cache, but half as
# many calls collide half as often on the interpreter's lock (A0's first such layer, one thread and
# two: 17.4 and 12.8 ms with 400 000 numbers, 17.9 and 11.5 with these, 18.6 and 10.6 with 900 000).
BLOCK_NUMBERS = 600_000
BLOCK_WEIGHTS = 1.6  # numbers at least for each of the weights, which every block reads


class Stride2Convolution:
    """F(m, 2) down the rows; the mathematics is in `winograd_stride_2`."""

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
        self.layout = stride_2.Strips(m, shape.height, shape.width)
        self.strips = shape.images * self.layout.strips
        weights = (m + 2) * weight.size // 3
        few = PRIVATE_WEIGHTS if seat is None else PRIVATE_WEIGHTS_OF_PROCESSES
        self.shared = weights > few or self.strips < threads
        self.blocks = self._blocks(weights)
        self.block = -(-self.strips // self.blocks)
        self.width = self._width()
        mine = range(shape.outputs // self.width)
        if self.shared and seat is not None:
            mine = portion(len(mine), seat, threads)
        packed = {} if packed is None else packed
        key = (name, "stride 2", m, self.width, mine)
        if key not in packed:
            rows = weight[mine.start * self.width : mine.stop * self.width]
            packed[key] = stride_2.transform_weight(rows, m, self.width, pool)
        self.u, self.first = packed[key], mine.start

    @property
    def padded(self) -> tuple[int, int]:  # noqa: D102  (Convolution)
        return self.layout.padded

    @property
    def scratch(self) -> int:  # noqa: D102  (Convolution)
        return self._floats * scratches(self.shared, self.threads, self.seat)

    def stages(  # noqa: D102  (Convolution)
        self, x: Array, y: Array, bias: Array | None, arena: Array, *, relu: bool, border: int = 0
    ) -> Iterator[Stage]:
        bias = bias_row(bias, self.shape.width)
        if self.shared:
            for start in range(0, self.strips, self.block):
                stop = min(start + self.block, self.strips)
                yield from self._together(x, y, bias, arena, start, stop, relu, border)
            return
        # (m + 2, panels, 3 C/G, width) -> (m + 2, G, panels, 3 C/G, width)
        u = self.u.reshape(len(self.u), self.shape.groups, -1, *self.u.shape[2:])

        def block(worker: int, item: int) -> list[Step]:
            some = portion(self.strips, item, self.blocks)
            start, stop = some.start, some.stop
            scratch = arena[scratch_of(worker, self.seat) * self._floats :]
            s = self._scratch(scratch, start, stop)
            return [
                *self._windows(x, border, s, start, start, stop),
                *stride_2.multiply(u[:-1], s.even, s.of_even[:-1]),
                *stride_2.multiply(u[-1], s.odd, s.of_odd),
                *self._output(y, bias, s, start, start, stop, relu),
            ]

        yield prepared(self.blocks, block)

    def _together(
        self,
        x: Array,
        y: Array,
        bias: Row,
        arena: Array,
        start: int,
        stop: int,
        relu: bool,
        border: int,
    ) -> Iterator[Stage]:
        """All threads on strips `start` to `stop`: windows, products by output parts, output."""
        s, count = self._scratch(arena, start, stop), stop - start
        items = min(share(self.threads, self.seat, len(s.odd) * self.shape.width), count)
        parts = self.shape.outputs // self.width

        def windows(worker: int, item: int) -> list[Step]:
            some = portion(count, item, items)
            return self._windows(x, border, s, start, start + some.start, start + some.stop)

        def multiply(worker: int, part: int) -> list[Step]:
            group = slice(part * self.shape.groups // parts, part * self.shape.groups // parts + 1)
            outputs = slice(part * self.width, (part + 1) * self.width)
            u = self.u[:, part - self.first, None, None]
            return [
                *stride_2.multiply(u[:-1], s.even[..., group, :], s.of_even[:-1, ..., outputs]),
                *stride_2.multiply(u[-1], s.odd[..., group, :], s.of_odd[..., outputs]),
            ]

        def output(worker: int, item: int) -> list[Step]:
            some = portion(count, item, items)
            return self._output(y, bias, s, start, start + some.start, start + some.stop, relu)

        yield prepared(items, windows)
        yield prepared(parts, multiply)
        yield prepared(items, output)

    def _windows(
        self, x: Array, border: int, s: stride_2.Scratch, start: int, first: int, last: int
    ) -> list[Step]:
        """Steps 1 and 2 for strips `first` to `last` of the block from `start` on."""
        strips, rows = slice(first - start, last - start), self._rows(start, first, last)
        row = self.layout.row
        return [
            *stride_2.windows_of_even_rows(
                x, self.layout, border, first, last, s.even_rows[strips], s.even[:, strips]
            ),
            *stride_2.windows_of_odd_rows(
                x, self.layout, border, row(first), row(last), s.odd_rows[rows], s.odd[rows]
            ),
        ]

    def _output(
        self,
        y: Array,
        bias: Row,
        s: stride_2.Scratch,
        start: int,
        first: int,
        last: int,
        relu: bool,
    ) -> list[Step]:
        """Step 4 for strips `first` to `last` of the block from `start` on."""
        even, odd = s.of_even[:, first - start : last - start], s.of_odd
        odd = odd[self._rows(start, first, last)]
        return stride_2.output_rows(y, bias, self.layout, first, last, even, odd, relu=relu)

    def _rows(self, start: int, first: int, last: int) -> slice:
        row = self.layout.row
        return slice(row(first) - row(start), row(last) - row(start))

    @cached_property
    def _floats(self) -> int:
        shape = self.shape
        return stride_2.scratch_floats(self.layout, self.block, shape.channels, shape.outputs)

    def _scratch(self, arena: Array, start: int, stop: int) -> stride_2.Scratch:
        shape = self.shape
        return stride_2.scratch(
            arena, self.layout, start, stop, shape.channels, shape.outputs, shape.groups
        )

    def _width(self) -> int:
        """Columns of a panel; shared weights have a part for each thread."""
        groups = self.shape.groups
        inner, outputs = 3 * self.shape.channels // groups, self.shape.outputs // groups
        if not self.shared:
            return panel_width(inner, outputs, self.block * self.shape.width)
        return outputs // math.gcd(outputs, -(-self.threads // groups))

    def _blocks(self, weights: int) -> int:
        """Into how many parts of nearly one size strips are cut that are in scratch together."""
        shape = self.shape
        a_strip = stride_2.scratch_floats(self.layout, 1, shape.channels, shape.outputs)
        limit = SHARED_NUMBERS if self.shared else max(BLOCK_NUMBERS, BLOCK_WEIGHTS * weights)
        blocks = -(-self.strips // max(1, int(limit // a_strip)))
        if not self.shared:
            blocks = -(-blocks // self.threads) * self.threads
        return min(blocks, self.strips)
