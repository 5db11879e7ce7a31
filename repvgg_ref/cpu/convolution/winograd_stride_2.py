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
against a column of ones. In float32 F(4, 2) errs by 1.5e-6 of the largest output of 256 channels,
F(7, 2) by 6e-6; direct form by 4e-7.

Milliseconds of A0's and B1's layers, batch 16, one AVX-512 core, on aligned memory, before (direct,
or the dense matrices of `cook_toom.every_other_output` in both dimensions) and now:

    channels    48->48   48->96  96->192  192->1280  64->128  128->256  256->512  512->2048
    pixels      56 x 56  28 x 28 14 x 14  7 x 7      56 x 56  28 x 28   14 x 14   7 x 7
    before      17.1     7.8     5.9      19.0       46.5     34.5      34.5      79.1
    now         16.0     6.3     5.5      17.4       42.3     36.4      32.3      69.2
    m           4        4       7        7          4        7         7         7

The limit is the product, at 150 to 190 GFLOP/s. F(m, 2) in both dimensions, in four phases, takes
5.06 or 4.59 products, but (m + 2)^2 weights instead of 3 (m + 2), four results to add, and a third
of the product's inner dimension; a prototype took 42.1 ms beside this form's 42.5, 34.7 beside 38.7
and 35.9 beside 37.8 in the fifth layer to the seventh, 1 % of B1.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import empty_panels, panel_products
from repvgg_ref.cpu.convolution.layout import by_image, carve, image_blocks, strided
from repvgg_ref.cpu.convolution.winograd import CACHED_NUMBERS, POINTS_OF_STRIDE_2, Tiles, floats
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, run_all
from repvgg_ref.exact.cook_toom import cook_toom


class Transforms(NamedTuple):
    """`bt` (m + 1, m + 1), `at` (m, m + 1), `at_bias` with ones beside it, `g` (m + 2, 3) float64.

    The last row of `g` is the middle tap, which the odd rows meet.
    """

    bt: Array
    at: Array
    at_bias: Array
    g: Array


@cache
def transforms(m: int, dtype: Any) -> Transforms:
    """The matrices of F(m, 2), exact until they are rounded once to `dtype`."""
    a, b, g = (floats(rows) for rows in cook_toom(POINTS_OF_STRIDE_2[m], taps=2))
    at = np.ascontiguousarray(a.T.astype(dtype))
    taps = np.zeros((m + 2, 3))
    taps[:-1, ::2], taps[-1, 1] = g, 1
    at_bias = np.concatenate([at, np.ones((m, 1), dtype)], axis=1)
    return Transforms(np.ascontiguousarray(b.T.astype(dtype)), at, at_bias, taps)


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


def transform_weight(weight: Array, m: int, width: int, pool: Pool | None = None) -> Array:
    """W_p and, last, W', in float64, rounded once: panels of `width` outputs, of any group.

    (panels * width, C/G, 3, 3) -> (m + 2, panels, 3 C/G, width). The caller works alone if there is
    no `pool`.
    """
    g = transforms(m, weight.dtype).g
    inputs, panels = weight.shape[1], len(weight) // width
    kernels = weight.reshape(panels, width, inputs, 3, 3)
    u = empty_panels((m + 2, panels, 3 * inputs, width), weight.dtype)
    by_tap = u.reshape(m + 2, panels, 3, inputs, width)
    some = max(1, CACHED_NUMBERS // (3 * (m + 2) * width))  # input channels

    def transform(worker: int, item: int) -> None:
        panel, block = divmod(item, -(-inputs // some))
        part = slice(block * some, (block + 1) * some)
        taps = kernels[panel, :, part].transpose(2, 3, 1, 0).astype(np.float64, order="C")
        # (m + 2, 3 * some * width) = (m + 2, 3) @ (3, 3 * some * width)
        by_tap[:, panel, :, part] = (g @ taps.reshape(3, -1)).reshape(m + 2, 3, -1, width)

    run_all(Stage(panels * -(-inputs // some), transform), pool)
    return u


class Scratch(NamedTuple):
    """Where a block of strips lives between steps; the rows and the products share memory."""

    even_rows: Array  # (strips, m + 1, Wp, C)
    odd_rows: Array  # (output rows, Wp, C), used where x has no zeros around itself
    even: Array  # (m + 1, strips, Wo, G, 3 C/G)
    odd: Array  # (output rows, Wo, G, 3 C/G)
    of_even: Array  # (m + 2, strips, Wo, O), the bias last
    of_odd: Array  # (output rows, Wo, O)


def scratch(
    arena: Array, layout: Strips, start: int, stop: int, channels: int, outputs: int, groups: int
) -> Scratch:
    """Lay the arrays for strips `start` to `stop` of the batch into the flat `arena`."""
    m, width, reach = layout.m, layout.width, layout.padded[1]
    strips, below = stop - start, layout.row(stop) - layout.row(start)
    windows = width, groups, 3 * channels // groups
    even, rest = _cut(arena, (m + 1, strips, *windows))
    odd, rest = _cut(rest, (below, *windows))
    even_rows, after_rows = _cut(rest, (strips, m + 1, reach, channels))
    odd_rows, _ = _cut(after_rows, (below, reach, channels))
    of_even, after_products = _cut(rest, (m + 2, strips, width, outputs))
    of_odd, _ = _cut(after_products, (below, width, outputs))
    return Scratch(even_rows, odd_rows, even, odd, of_even, of_odd)


def scratch_floats(layout: Strips, strips: int, channels: int, outputs: int) -> int:
    """How many numbers `scratch` needs."""
    m, (_, reach) = layout.m, layout.padded
    windows = (2 * m + 1) * layout.width * 3 * channels
    rows = (2 * m + 1) * reach * channels
    products = (2 * m + 2) * layout.width * outputs
    return strips * (windows + max(rows, products))


def windows_of_even_rows(
    x: Array, layout: Strips, border: int, start: int, stop: int, rows: Array, out: Array
) -> list[Step]:
    """Steps 1 and 2 for strips `start` to `stop` of the batch.

    Parameters
    ----------
    x : (N, H, W, C) array, its last two axes contiguous, in `border` pixels of zeros
    rows : (stop - start, m + 1, Wp, C) scratch, contiguous
    out : (m + 1, stop - start, Wo, G, 3 C/G) array
    """
    bt = transforms(layout.m, x.dtype).bt
    strips = Tiles(x, bt, 2 * layout.m, border, layout.strips, apart=2)
    transform = strips.rows(start, stop, rows, rows.shape[2])
    strip, row, _, _ = rows.strides
    return [*transform, _gather(rows, (), (row, strip), out)]


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


def output_rows(
    y: Array,
    bias: Array | None,
    layout: Strips,
    start: int,
    stop: int,
    even: Array,
    odd: Array,
    *,
    relu: bool,
) -> list[Step]:
    """Step 4 for strips `start` to `stop`: bias, ReLU, and into the pixels of `y`.

    Parameters
    ----------
    y : (N, Ho, Wo, O) array, its last two axes contiguous
        May be the interior of a larger buffer, the next layer's padded input.
    bias : (Wo * O,) array, the bias repeated for each pixel of a row, or None
    even : (m + 2, stop - start, Wo, O) array
        Products of the even rows; its last row is for the bias.
    odd : (output rows, Wo, O) array
        Products of the odd rows. Overwritten.
    """
    m, wide = layout.m, layout.width * y.shape[3]
    _, at, matrix, _ = transforms(m, y.dtype)
    products = even.reshape(m + 2, stop - start, wide)
    steps: list[Step] = []
    if bias is None:
        matrix, products = at, products[: m + 1]
    else:
        steps.append(partial(np.copyto, products[m + 1], bias))
    image, row, _, number = y.strides
    for images, first, last, place in image_blocks(start, stop, layout.strips):
        some = y[images]
        count, runs = len(some), products[:, place].reshape(len(products), len(some), -1, wide)
        whole = min(last, layout.height // m)  # the lowest strip may reach below the image
        for begin, end, kept in ((first, whole, m), (max(first, whole), last, layout.height % m)):
            if begin < end:
                out = strided(
                    some,
                    (count, end - begin, kept, wide),
                    (image, m * row, row, number),
                    (0, begin * m),
                )
                held = runs[:, :, begin - first : end - first].transpose(1, 2, 0, 3)
                steps.append(partial(np.matmul, matrix[:kept], held, out=out))
        out = some[:, first * m : last * m]
        above = layout.row(start + place.start) - layout.row(start)
        beside = by_image(odd[above : above + count * out.shape[1]], images)
        if relu:
            steps.append(partial(np.add, out, beside, out=beside))
            steps.append(partial(np.maximum, beside, 0, out=out))
        else:
            steps.append(partial(np.add, out, beside, out=out))
    return steps


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
