"""Which thread does what in a 3x3 convolution by F(m, 3); see `schedule`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import winograd
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
from repvgg_ref.cpu.convolution.winograd import Tiles, Tiling
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, portion, prepared

PRIVATE_TILES, PRIVATE_TILES_OF_THREADS = 64, 192  # threads want few calls rather than warm caches


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
