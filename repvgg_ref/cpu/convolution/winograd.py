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
once. The bias rides in step 5 as row t + 1 of the sums, against a column of ones in A^T. Each
function below returns its steps as NumPy calls on views, ready to be run any number of times.

Measured on one AVX-512 core, per tile and channel, F(4, 3): steps 1 and 2 18 ns, 4 and 5 14 ns,
against 22 and 14 ns for one dense product with the Kronecker matrices (36, 36) and (16, 36) plus
the copy that must lay out its operand; step 3 takes 60 ns at 128 channels and 240 ns at 512. So
the product binds, then the transforms; the smaller the layer the more the transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import empty_panels, panel_products
from repvgg_ref.cpu.convolution.layout import by_image, carve, image_blocks, strided
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, run_all
from repvgg_ref.exact.cook_toom import Point, Rows, cook_toom, every_other_output

# The least rounding error found by a search over small fractions (tests/cpu/test_accuracy.py):
# Lavin & Gray's 0, 1, -1, 2, -2 for F(4, 3) errs four times more.
POINTS: dict[int, tuple[Point, ...]] = {
    2: (0, 1, -1, math.inf),
    4: (0, Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2), math.inf),
    5: (0, *(sign * Fraction(n, 8) for n in (5, 10, 24) for sign in (1, -1))),
    6: (0, *(sign * Fraction(n, 4) for n in (2, 4, 7) for sign in (1, -1)), math.inf),
    7: (0, *(sign * Fraction(n, 8) for n in (4, 7, 12, 32) for sign in (1, -1))),
}
# Of F(m, 2), the even half of a convolution with stride 2: its output is in `winograd_stride_2`,
# here is what its weight gradient needs.
POINTS_OF_STRIDE_2: dict[int, tuple[Point, ...]] = {
    2: (0, -1, math.inf),
    4: (0, *(sign * Fraction(n, 4) for n in (3, 10) for sign in (1, -1))),
    7: (0, *(sign * Fraction(n, 2) for n in (1, 2, 4) for sign in (1, -1)), math.inf),
}


CACHED_NUMBERS = 120_000  # of float64, beside which all else fits the second-level cache


class Transforms(NamedTuple):
    """`bt` (t, t), `at` (m, t), `at_bias` (m, t + 1) with ones beside `at`, `g` (t, 3) float64."""

    bt: Array
    at: Array
    at_bias: Array
    g: Array


@cache
def transforms(m: int, stride: int, dtype: Any) -> Transforms:
    """The matrices of F(m, 3), exact until they are rounded once to `dtype`."""
    exact = cook_toom(POINTS[m]) if stride == 1 else every_other_output(POINTS_OF_STRIDE_2[m])
    a, b, g = (floats(rows) for rows in exact)
    at = a.T.astype(dtype)
    ones = np.ones((m, 1), dtype)
    return Transforms(
        np.ascontiguousarray(b.T.astype(dtype)),
        np.ascontiguousarray(at),
        np.concatenate([at, ones], axis=1),
        g,
    )


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


def transform_weight(
    weight: Array,
    groups: int,
    tiling: Tiling,
    width: int,
    positions: range,
    pool: Pool | None = None,
) -> Array:
    """``U = G g G^T`` in float64, rounded once, for some of the t * t positions.

    (O, C/G, 3, 3) -> (positions, G, panels, C/G, width); `width` is that of the panels,
    `gemm.panel_width`. The caller works alone if there is no `pool`.
    """
    g = transforms(tiling.m, tiling.stride, weight.dtype).g
    both = np.kron(g, g)[positions.start : positions.stop]  # (positions, 9)
    inputs, panels = weight.shape[1], len(weight) // width
    kernels = weight.reshape(panels, width, inputs, 9)
    u = empty_panels((len(both), panels, inputs, width), weight.dtype)
    some = max(1, CACHED_NUMBERS // (len(positions) * width))  # input channels

    def transform(worker: int, item: int) -> None:
        panel, block = divmod(item, -(-inputs // some))
        part = slice(block * some, (block + 1) * some)
        taps = kernels[panel, :, part].transpose(2, 1, 0).astype(np.float64, order="C")
        # (positions, some * width) = (positions, 9) @ (9, some * width)
        u[:, panel, part] = (both @ taps.reshape(9, -1)).reshape(len(both), -1, width)

    run_all(Stage(panels * -(-inputs // some), transform), pool)
    return u.reshape(len(both), groups, -1, inputs, width)


class Scratch(NamedTuple):
    """Where a block of strips lives between steps; `rows` and `m`, `sums` and `v` share memory."""

    rows: Array  # (strips, t, Wp, C)
    v: Array  # (t, t, strips, tiles, C)
    m: Array  # (t, t, strips, tiles, O)
    sums: Array  # (strips, t + 1, tiles * m, O)


def scratch_floats(tiling: Tiling, strips: int, channels: int, outputs: int) -> int:
    """How many numbers `scratch` needs for a block of `strips` strips."""
    first, second = _halves(tiling, strips, channels, outputs)
    return first + second


def scratch(arena: Array, tiling: Tiling, strips: int, channels: int, outputs: int) -> Scratch:
    """Lay a block's arrays into the flat `arena`."""
    t, tiles = tiling.t, tiling.tiles
    first, _ = _halves(tiling, strips, channels, outputs)
    return Scratch(
        carve(arena[first:], (strips, t, tiling.padded[1], channels)),
        carve(arena, (t, t, strips, tiles, channels)),
        carve(arena[first:], (t, t, strips, tiles, outputs)),
        carve(arena, (strips, t + 1, tiles * tiling.m, outputs)),
    )


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


def input_tiles(x: Array, tiling: Tiling, border: int = 0) -> Tiles:
    """The tiles that step 1 reads, `border` pixels of zeros being around `x` beyond its own."""
    matrix = transforms(tiling.m, tiling.stride, x.dtype).bt
    return Tiles(x, matrix, tiling.step, border, tiling.strips)


def multiply(u: Array, s: Scratch, strips: int, first: int) -> list[Step]:
    """Step 3, V_p U_p group by group, for as many positions p1 * t + p2 from `first` as `u` has."""
    groups, tiles, square = u.shape[1], strips * s.v.shape[3], len(s.v) ** 2
    some = slice(first, first + len(u))
    v = s.v.reshape(square, -1, groups, s.v.shape[4] // groups)[some, :tiles]
    m = s.m.reshape(square, -1, groups, s.m.shape[4] // groups)[some, :tiles]
    return panel_products(v.transpose(0, 2, 1, 3), u, m.transpose(0, 2, 1, 3))


def output_transform(
    y: Array,
    bias: Array | None,
    tiling: Tiling,
    start: int,
    stop: int,
    at: int,
    s: Scratch,
    *,
    relu: bool,
) -> list[Step]:
    """Steps 4 and 5 for strips `start` to `stop`: bias, ReLU, and into the pixels of `y`.

    Parameters
    ----------
    y : (N, H, W, O) array, its last two axes contiguous
        May be the interior of a larger buffer, the next layer's padded input.
    bias : (W * O,) array, the bias repeated for each pixel of a row, or None
    """
    m, t = tiling.m, tiling.t
    matrices = transforms(m, tiling.stride, y.dtype)
    block = slice(at, at + stop - start)
    strip, row, pixel, number = s.sums.strides
    sums = strided(  # (t, strips, tiles, m, O)
        s.sums[block],
        (t, stop - start, tiling.tiles, m, s.sums.shape[3]),
        (row, strip, m * pixel, pixel, number),
    )
    wide = tiling.width * s.sums.shape[3]
    rows = s.sums.reshape(len(s.sums), t + 1, -1)[:, :, :wide]
    steps: list[Step] = [
        partial(np.matmul, matrices.at, s.m[:, :, block].transpose(0, 2, 3, 1, 4), out=sums)
    ]
    fifth = matrices.at_bias
    if bias is None:
        fifth, rows = matrices.at, rows[:, :t]
    else:
        steps.append(partial(np.copyto, rows[block, t], bias))
    image, row, _, number = y.strides
    for images, first, last, place in image_blocks(start, stop, tiling.strips):
        some, held = y[images], by_image(rows[block][place], images)
        whole = min(last, tiling.height // m)  # the lowest strip may reach below the image
        for begin, end, kept in ((first, whole, m), (max(first, whole), last, tiling.height % m)):
            if begin < end:
                out = strided(
                    some,
                    (len(some), end - begin, kept, wide),
                    (image, m * row, row, number),
                    (0, begin * m),
                )
                above = held[:, begin - first : end - first]
                steps.append(partial(np.matmul, fifth[:kept], above, out=out))
                if relu:
                    steps.append(partial(np.maximum, out, 0, out=out))
    return steps


def _halves(tiling: Tiling, strips: int, channels: int, outputs: int) -> tuple[int, int]:
    t, tiles = tiling.t, tiling.tiles
    v, m = t * t * strips * tiles * channels, t * t * strips * tiles * outputs
    rows = strips * t * tiling.padded[1] * channels
    sums = strips * (t + 1) * tiles * tiling.m * outputs
    line = 16  # floats in a cache line
    return -(-max(v, sums) // line) * line, max(m, rows)


def floats(rows: Rows) -> Array:
    """Exact matrices in float64."""
    return np.array([[float(number) for number in row] for row in rows])
