"""Winograd's 3x3 convolution in NHWC: nine multiplications become 2.25, or fewer.

An output tile of m x m pixels needs an input tile of t x t pixels, ``t = stride (m - 1) + 3``, and

    Y = A^T [sum over c of (G g_c G^T) . (B^T d_c B)] A          (Lavin & Gray, equation 8)

where the dot is a product of t x t numbers. Read for one of the t * t positions p = (p1, p2), the
sum over channels is a matrix product over all tiles at once, the only step with real work:

    M_p = V_p U_p        (tiles, O) = (tiles, C) (C, O)          t^2 / m^2 products a pixel

    step            reads            writes          as matrix products, channels innermost
    1 input rows    x (Hp, Wp, C)    rows            (t, t) @ (t, Wp * C), one a strip of tiles
    2 input columns rows             V               (t, t) @ (t, C), one a tile and p1
    3 multiply      V, U             M               (tiles, C) @ (C, O), one a p and group
    4 columns       M                sums            (m, t) @ (t, O), one a tile and p1
    5 rows          sums, bias       y (H, W, O)     (m, t + 1) @ (t + 1, W * O), one a strip

A *strip* is one row of tiles of one image. Steps 1 and 2 are B^T d B, one dimension after the
other: step 1 on whole rows, so that the two columns which neighbouring tiles share are transformed
once. The bias rides in step 5 as row t + 1 of the sums, against a column of ones in A^T. Steps are
NumPy calls on views, ready to be run any number of times.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import panel_products, panel_width
from repvgg_ref.cpu.convolution.layout import by_image, carve, image_blocks, strided
from repvgg_ref.cpu.convolution.schedule import (
    SHARED_NUMBERS,
    Block,
    Convolution,
    Layout,
    Task,
    private_weights,
    rectified,
)
from repvgg_ref.cpu.convolution.tiles import (
    Tiles,
    Transforms,
    rounded,
    rows_of_strips,
    transform_weight,
)
from repvgg_ref.cpu.workers.pool import Pool, Step, portion
from repvgg_ref.exact.cook_toom import cook_toom, every_other_output
from repvgg_ref.exact.points import POINTS, POINTS_OF_STRIDE_2

PRIVATE_TILES, PRIVATE_TILES_OF_THREADS = 64, 192  # threads want few calls rather than warm caches


@cache
def transforms(m: int, stride: int, dtype: Any) -> Transforms:
    """The matrices of F(m, 3): `bt` (t, t), `at` (m, t), `g` (t, 3)."""
    exact = cook_toom(POINTS[m]) if stride == 1 else every_other_output(POINTS_OF_STRIDE_2[m])
    return rounded(exact, dtype)


class Tiling(NamedTuple):
    """How F(m, 3) covers an output of H x W: `strips` rows of `tiles` tiles an image."""

    m: int
    stride: int
    height: int
    width: int

    @property
    def t(self) -> int:
        """Side of an input tile, which is the number of products a dimension."""
        return self.stride * (self.m - 1) + 3

    @property
    def step(self) -> int:
        """From one input tile to the next, in pixels."""
        return self.stride * self.m

    @property
    def strips(self) -> int:
        """Rows of tiles in an image."""
        return -(-self.height // self.m)

    @property
    def tiles(self) -> int:
        """Tiles in a strip."""
        return -(-self.width // self.m)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input that the tiles read, zero border included."""
        return tuple((n - 1) * self.step + self.t for n in (self.strips, self.tiles))  # type: ignore[return-value]


class Scratch(NamedTuple):
    """Where a block of strips lives between steps; `rows` and `m`, `sums` and `v` share memory."""

    rows: Array  # (strips, t, Wp, C)
    v: Array  # (t, t, strips, tiles, C)
    m: Array  # (t, t, strips, tiles, O)
    sums: Array  # (strips, t + 1, tiles * m, O)


def input_tiles(x: Array, tiling: Tiling, border: int = 0) -> Tiles:
    """The tiles that step 1 reads, `border` pixels of zeros being around `x` beyond its own."""
    matrix = transforms(tiling.m, tiling.stride, x.dtype).bt
    return Tiles(x, matrix, tiling.step, border, tiling.strips)


class WinogradConvolution(Convolution):
    """F(m, 3) with stride 1; the product's parts are the t * t positions."""

    @cached_property
    def tiling(self) -> Tiling:
        """The tiles of the output."""
        return Tiling(self.m, self.shape.stride, self.shape.height, self.shape.width)

    def _layout(self) -> Layout:
        inner = self.shape.channels // self.shape.groups
        return Layout(self.tiling.strips, self.tiling.padded, inner)

    @property
    def positions(self) -> int:
        """Products of a tile."""
        return self.tiling.t**2

    @property
    def _parts(self) -> int:
        return self.positions

    def _shares(self, items: int) -> list[range]:
        return [portion(self._parts, item, items) for item in range(items)]

    def _is_heavy(self) -> bool:
        if self.positions * self.shape.pairs <= private_weights(self.seat):
            return False
        tiles = self.strips * self.tiling.tiles
        return self.inner > 192 or tiles < 4 * self.threads * PRIVATE_TILES

    def _strips_together(self) -> int | Fraction:
        shape, tiles = self.shape, self.tiling.tiles
        if self.shared:
            return Fraction(
                SHARED_NUMBERS, self.positions * tiles * (shape.channels + shape.outputs)
            )
        many = self.threads > 1 and self.seat is None
        return (PRIVATE_TILES_OF_THREADS if many else PRIVATE_TILES) // tiles

    def _panel_width(self) -> int:
        outputs = self.shape.outputs // self.shape.groups
        return panel_width(self.inner, outputs, self.block * self.tiling.tiles)

    def _pack(self, weight: Array, parts: range, pool: Pool | None) -> Array:
        """``U = G g G^T``, (positions, G, panels, C/G, width)."""
        g = transforms(self.m, self.shape.stride, weight.dtype).g
        both = np.kron(g, g)[parts.start : parts.stop]  # (positions, 9)
        u = transform_weight(both, weight, self.width, pool)
        return u.reshape(len(both), self.shape.groups, -1, *u.shape[2:])

    def _rows(self, strips: range) -> int:
        return len(strips) * self.tiling.tiles

    def _scratch_numbers(self, strips: int) -> int:
        return sum(self._halves(strips))

    def _halves(self, strips: int) -> tuple[int, int]:
        """Numbers of the two halves of scratch, each for two arrays that take turns."""
        shape, m, t, tiles = self.shape, self.m, self.tiling.t, self.tiling.tiles
        of_v, of_m = (t * t * strips * tiles * size for size in (shape.channels, shape.outputs))
        of_rows = strips * t * self.padded[1] * shape.channels
        of_sums = strips * (t + 1) * tiles * m * shape.outputs
        line = 16  # floats in a cache line
        return -(-max(of_v, of_sums) // line) * line, max(of_m, of_rows)

    def _lay(self, arena: Array, task: Task, strips: range) -> Scratch:
        """As for the largest block."""
        t, tiles, count = self.tiling.t, self.tiling.tiles, self.block
        channels, outputs = self.shape.channels, self.shape.outputs
        second = arena[self._halves(count)[0] :]
        return Scratch(
            carve(second, (count, t, self.padded[1], channels)),
            carve(arena, (t, t, count, tiles, channels)),
            carve(second, (t, t, count, tiles, outputs)),
            carve(arena, (count, t + 1, tiles * self.m, outputs)),
        )

    def _read(self, block: Block, strips: range) -> list[Step]:
        """Steps 1 and 2."""
        s, at, task = block.scratch, block.within(strips), block.task
        tiles = input_tiles(task.x, self.tiling, task.border)
        return tiles.transform(strips.start, strips.stop, s.rows[at], s.v[:, :, at])

    def _multiply(self, block: Block, parts: range, packed: Array) -> list[Step]:
        """Step 3, V_p U_p group by group for some positions p1 * t + p2."""
        v, m = self._by_group(block)
        some = slice(parts.start, parts.stop)
        return panel_products(v[some], packed, m[some])

    def _by_group(self, block: Block) -> tuple[Array, Array]:
        """Views of V and M, (positions, G, tiles, C/G) and (positions, G, tiles, O/G)."""
        s, groups, tiles = block.scratch, self.shape.groups, self._rows(block.strips)
        v = s.v.reshape(self.positions, -1, groups, self.inner)[:, :tiles]
        m = s.m.reshape(self.positions, -1, groups, s.m.shape[4] // groups)[:, :tiles]
        return v.transpose(0, 2, 1, 3), m.transpose(0, 2, 1, 3)

    def _write(self, block: Block, strips: range) -> list[Step]:
        """Steps 4 and 5: bias, ReLU, and into y, which may lie in the next layer's border."""
        m, t, tiles = self.m, self.tiling.t, self.tiling.tiles
        _, y, bias, relu, _ = block.task
        at, outputs = block.within(strips), y.shape[3]
        of_m, of_sums = block.scratch.m[:, :, at], block.scratch.sums[at]
        matrices = transforms(m, self.shape.stride, y.dtype)
        strip, row, pixel, number = of_sums.strides
        sums = strided(  # (t, strips, tiles, m, O)
            of_sums,
            (t, len(strips), tiles, m, outputs),
            (row, strip, m * pixel, pixel, number),
        )
        steps: list[Step] = [
            partial(np.matmul, matrices.at, of_m.transpose(0, 2, 3, 1, 4), out=sums)
        ]
        rows = of_sums.reshape(len(strips), t + 1, -1)[:, :, : self.shape.width * outputs]
        if bias is None:
            fifth, rows = matrices.at, rows[:, :t]
        else:
            fifth = matrices.at_bias
            steps.append(partial(np.copyto, rows[:, t], bias))
        for images, first, last, place in image_blocks(
            strips.start, strips.stop, self.tiling.strips
        ):
            above = by_image(rows[place], images)
            for step, out in rows_of_strips(fifth, above, y[images], first, last):
                steps.append(step)
                if relu:
                    steps.append(rectified(out, out))
        return steps
