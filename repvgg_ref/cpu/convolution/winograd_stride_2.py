"""Winograd's 3x3 convolution with stride 2 in NHWC, down the rows: 6.43 or 6.75 products for nine.

Down a column of pixels, x being padded, e its even rows and o its odd ones,

    y_i = sum over k of g_k x_(2i+k) = (g_0 e_i + g_2 e_(i+1)) + g_1 o_i

The even rows are filtered with two taps: F(m, 2), m + 1 products for m outputs instead of 2 m. An
odd row meets one tap and is convolved as it is. Across, where pixels lie side by side in memory, a
window's three taps are one run of 3 C numbers and stay the inner dimension of a direct product:

    Y = A^T [W_p (B^T e)_p] + W' o       W_p = (G g)_p (3 C, O), p = 0 .. m;   W' = g_1 (3 C, O)

    step            reads         writes            as matrix products, channels innermost
    1 even rows     x             rows              (m + 1, m + 1) @ (m + 1, Wp * C), one a strip
    2 gather        rows, x       even, odd         none: windows of 3 C numbers
    3 multiply      even, odd, U  products          (pixels, 3 C) @ (3 C, O), m + 1 and one
    4 output rows   products      y (Ho, Wo, O)     (m, m + 2) @ (m + 2, Wo * O), one a strip; add

A *strip* is m rows of outputs of one image. The bias rides in step 4 as one more row of products,
against a column of ones.

F(m, 2) in both dimensions, in four phases, would take 5.06 or 4.59 products, but (m + 2)^2 weights
instead of 3 (m + 2), four results to add, and a third of the product's inner dimension.
"""

from __future__ import annotations

import math
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import panel_products
from repvgg_ref.cpu.convolution.layout import by_image, carve, image_blocks, strided
from repvgg_ref.cpu.convolution.schedule import (
    SHARED_NUMBERS,
    Block,
    Convolution,
    Layout,
    Task,
    add,
    private_weights,
)
from repvgg_ref.cpu.convolution.tiles import (
    Tiles,
    Transforms,
    rounded,
    rows_of_strips,
    transform_weight,
)
from repvgg_ref.cpu.workers.pool import Pool, Step
from repvgg_ref.exact.cook_toom import cook_toom
from repvgg_ref.exact.points import POINTS_OF_STRIDE_2

# Scratch of one block, 2.4 MB of float32, twice what a second-level cache would like: half as many
# calls collide half as often on the interpreter's lock.
BLOCK_NUMBERS = 600_000
BLOCK_WEIGHTS = 1.6  # numbers at least for each of the weights, which every block reads


@cache
def transforms(m: int, dtype: Any) -> Transforms:
    """The matrices of F(m, 2): `bt` (m + 1, m + 1), `at` (m, m + 1), `g` (m + 2, 3).

    The last row of `g` is the middle tap, which the odd rows meet.
    """
    even = rounded(cook_toom(POINTS_OF_STRIDE_2[m], taps=2), dtype)
    g = np.zeros((m + 2, 3))
    g[:-1, ::2], g[-1, 1] = even.g, 1
    return even._replace(at_bias=np.ascontiguousarray(even.at_bias), g=g)


class Strips(NamedTuple):
    """How F(m, 2) covers an output of H x W: `strips` of m rows an image, the last one cut off."""

    m: int
    height: int
    width: int

    @property
    def strips(self) -> int:
        """In an image."""
        return -(-self.height // self.m)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input that the strips read, zero border included."""
        return 2 * self.m * self.strips + 1, 2 * self.width + 1

    @property
    def products(self) -> int:
        """Rows of windows that meet a weight matrix, in an image: `strips` times m + 1, and all."""
        return (self.m + 1) * self.strips + self.height

    def row(self, strip: int) -> int:
        """The first output row of a strip, both counted through the batch."""
        image, place = divmod(strip, self.strips)
        return image * self.height + place * self.m


class Scratch(NamedTuple):
    """Where a block of strips lives between steps; the rows and the products share memory."""

    even_rows: Array  # (strips, m + 1, Wp, C)
    odd_rows: Array  # (output rows, Wp, C), used where x has no zeros around itself
    even: Array  # (m + 1, strips, Wo, G, 3 C/G)
    odd: Array  # (output rows, Wo, G, 3 C/G)
    of_even: Array  # (m + 2, strips, Wo, O), the bias last
    of_odd: Array  # (output rows, Wo, O)


def windows_of_odd_rows(
    x: Array, layout: Strips, border: int, start: int, stop: int, rows: Array, out: Array
) -> list[Step]:
    """Step 2 for output rows `start` to `stop` of the batch.

    Parameters
    ----------
    x : (N, H, W, C) array, its last two axes contiguous, in `border` pixels of zeros
    rows : (stop - start, Wp, C) scratch, contiguous
    out : (stop - start, Wo, G, 3 C/G) array
    """
    steps: list[Step] = []
    end = min(border + x.shape[2], rows.shape[1])
    image, row = x.strides[:2]
    if border:
        steps.append(partial(rows.fill, 0))
    for images, first, last, place in image_blocks(start, stop, layout.height):
        if not border:
            held = by_image(out[place], images)
            steps.append(_gather(x[images], (0, 2 * first + 1), (image, 2 * row), held))
            continue
        low = min(max(first, border // 2), last)  # output row i meets row 2 i + 1 - border of x
        high = max(low, min(last, (x.shape[1] + border) // 2))
        if low < high:
            seen = x[images, 2 * low + 1 - border : 2 * high - border : 2, : end - border]
            held = by_image(rows[place], images)[:, low - first : high - first, border:end]
            steps.append(partial(np.copyto, held, seen))
    return [*steps, _gather(rows, (), rows.strides[:1], out)] if border else steps


def multiply(u: Array, windows: Array, out: Array) -> list[Step]:
    """Step 3: ``windows (..., Wo, G, 3 C/G)`` by ``u (..., G, panels, 3 C/G, width)``.

    Leading axes of `u`, if any, are those of the windows; `out` is (..., Wo, O).
    """
    lead = windows.shape[: u.ndim - 4]
    groups, inner = windows.shape[-2:]
    left = windows.reshape(*lead, -1, groups, inner).swapaxes(-3, -2)
    target = out.reshape(*lead, -1, groups, out.shape[-1] // groups).swapaxes(-3, -2)
    return panel_products(left, u, target)


def _gather(rows: Array, first: tuple[int, ...], strides: tuple[int, ...], out: Array) -> Step:
    """Copy three pixels of a row, two apart, to each window of ``out (..., Wo, G, 3 C/G)``.

    The rows of ``rows (..., Wp, C)`` begin at `first`; `strides` (bytes) lead to the others.
    """
    *lead, width, groups, inner = out.shape
    pixel, number = rows.strides[-2:]
    seen = strided(
        rows,
        (*lead, width, groups, 3, inner // 3),
        (*strides, 2 * pixel, inner // 3 * number, pixel, number),
        first,
    )
    return partial(np.copyto, out.reshape(seen.shape), seen)


def _cut(flat: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The first numbers of `flat`, in `shape`, and the rest."""
    return carve(flat, shape), flat[math.prod(shape) :]


class Stride2Convolution(Convolution):
    """F(m, 2) down the rows, with stride 2."""

    part_axis = 1

    @cached_property
    def tiling(self) -> Strips:
        """The strips of the output."""
        return Strips(self.m, self.shape.height, self.shape.width)

    def _layout(self) -> Layout:
        inner = 3 * self.shape.channels // self.shape.groups
        return Layout(self.tiling.strips, self.tiling.padded, inner)

    def _is_heavy(self) -> bool:
        return self._packed_numbers > private_weights(self.seat)

    @property
    def _packed_numbers(self) -> int:
        return (self.m + 2) * self.inner * self.shape.outputs

    def _strips_together(self) -> int:
        limit = (
            SHARED_NUMBERS
            if self.shared
            else max(BLOCK_NUMBERS, BLOCK_WEIGHTS * self._packed_numbers)
        )
        return int(limit // self._scratch_numbers(1))

    def _pack(self, weight: Array, parts: range, pool: Pool | None) -> Array:
        """W_p and, last, W': (m + 2, parts, 3 C/G, width)."""
        rows = weight[parts.start * self.width : parts.stop * self.width]
        return transform_weight(transforms(self.m, weight.dtype).g, rows, self.width, pool)

    def _rows(self, strips: range) -> int:
        row = self.tiling.row
        return (row(strips.stop) - row(strips.start)) * self.shape.width

    def _scratch_numbers(self, strips: int) -> int:
        shape, m = self.shape, self.m
        windows = (2 * m + 1) * shape.width * 3 * shape.channels
        rows = (2 * m + 1) * self.padded[1] * shape.channels
        products = (2 * m + 2) * shape.width * shape.outputs
        return strips * (windows + max(rows, products))

    def _lay(self, arena: Array, task: Task, strips: range) -> Scratch:
        shape, m, reach = self.shape, self.m, self.padded[1]
        count, below = len(strips), self._below(strips, strips).stop
        windows = shape.width, shape.groups, self.inner
        even, rest = _cut(arena, (m + 1, count, *windows))
        odd, rest = _cut(rest, (below, *windows))
        even_rows, after_rows = _cut(rest, (count, m + 1, reach, shape.channels))
        odd_rows, _ = _cut(after_rows, (below, reach, shape.channels))
        of_even, after_products = _cut(rest, (m + 2, count, shape.width, shape.outputs))
        of_odd, _ = _cut(after_products, (below, shape.width, shape.outputs))
        return Scratch(even_rows, odd_rows, even, odd, of_even, of_odd)

    def _read(self, block: Block, strips: range) -> list[Step]:
        """Steps 1 and 2."""
        s, at, below = block.scratch, block.within(strips), self._below(block.strips, strips)
        x, border, tiling = block.task.x, block.task.border, self.tiling
        bt = transforms(self.m, x.dtype).bt
        rows = s.even_rows[at]
        tiles = Tiles(x, bt, 2 * self.m, border, tiling.strips, apart=2)
        even = tiles.rows(strips.start, strips.stop, rows, rows.shape[2])
        first, last = tiling.row(strips.start), tiling.row(strips.stop)
        odd = windows_of_odd_rows(x, tiling, border, first, last, s.odd_rows[below], s.odd[below])
        return [*even, _gather(rows, (), rows.strides[1::-1], s.even[:, at]), *odd]

    def _multiply(self, block: Block, parts: range, packed: Array) -> list[Step]:
        """Step 3."""
        s, groups = block.scratch, self.shape.groups
        if not self.shared:
            # (m + 2, panels, 3 C/G, width) -> (m + 2, G, panels, 3 C/G, width)
            u = packed.reshape(self.m + 2, groups, -1, *packed.shape[2:])
            group, outputs = slice(None), slice(None)
        else:
            (part,) = parts
            u = packed[:, 0, None, None]
            first = part * groups // self._parts
            group = slice(first, first + 1)
            outputs = slice(part * self.width, (part + 1) * self.width)
        return [
            *multiply(u[:-1], s.even[..., group, :], s.of_even[:-1, ..., outputs]),
            *multiply(u[-1], s.odd[..., group, :], s.of_odd[..., outputs]),
        ]

    def _write(self, block: Block, strips: range) -> list[Step]:
        """Step 4: bias, ReLU, and into y, which may lie in the next layer's border."""
        _, y, bias, relu, _ = block.task
        tiling, wide = self.tiling, self.shape.width * y.shape[3]
        odd = block.scratch.of_odd[self._below(block.strips, strips)]
        even = block.scratch.of_even[:, block.within(strips)]
        matrices = transforms(self.m, y.dtype)
        products = even.reshape(self.m + 2, len(strips), wide)
        steps: list[Step] = []
        if bias is None:
            matrix, products = matrices.at, products[:-1]
        else:
            matrix = matrices.at_bias
            steps.append(partial(np.copyto, products[-1], bias))
        by_strip = products.swapaxes(0, 1)
        for images, first, last, place in image_blocks(strips.start, strips.stop, tiling.strips):
            some, held = y[images], by_image(by_strip[place], images)
            steps += [step for step, _ in rows_of_strips(matrix, held, some, first, last)]
            out = some[:, first * self.m : last * self.m]
            above = tiling.row(strips.start + place.start) - tiling.row(strips.start)
            beside = by_image(odd[above : above + len(some) * out.shape[1]], images)
            steps += add(out, beside, beside, out, relu=relu)
        return steps

    def _below(self, block: range, strips: range) -> slice:
        """The output rows of some strips, counted from the first of the block."""
        row = self.tiling.row
        return slice(row(strips.start) - row(block.start), row(strips.stop) - row(block.start))
