"""Direct 3x3 (or K x K) convolution in NHWC: gather windows in cache, multiply once.

    y = columns W + b,        columns (pixels, K * K * C)

`columns` is laid out for a block of output rows only, in scratch that stays in cache, and is
gathered in runs of K * C numbers, since the pixels of a window's row lie side by side. The copy
costs 9 C moves a pixel against 9 C O multiplications. A *strip* is one row of output pixels.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import empty_panels, panel_products
from repvgg_ref.cpu.convolution.layout import by_image, carve, image_blocks, strided
from repvgg_ref.cpu.convolution.schedule import (
    SHARED_NUMBERS,
    Block,
    Convolution,
    ConvShape,
    Layout,
    Task,
    add,
)
from repvgg_ref.cpu.workers.pool import Pool, Step

PRIVATE_NUMBERS = 250_000  # columns and outputs of one block: 1 MB of float32
SHARED_WEIGHTS = 1_000_000  # from so many on


class Window(NamedTuple):
    """Geometry of a convolution: kernel side, stride, dilation, groups, output height and width.

    `border` is how many pixels of zeros lie around x that it does not hold itself.
    """

    kernel: int
    stride: int
    dilation: int
    groups: int
    height: int
    width: int
    border: int = 0


def window_of(shape: ConvShape, border: int) -> Window:
    """The windows of a convolution whose x holds all but `border` pixels of its zeros."""
    return Window(
        shape.kernel,
        shape.stride,
        shape.dilation,
        shape.groups,
        shape.height,
        shape.width,
        border,
    )


class DirectConvolution(Convolution):
    """Gather the windows of a block, multiply, add the bias as each panel's product is there."""

    writes = False

    def _layout(self) -> Layout:
        inner = self.shape.kernel**2 * self.shape.channels // self.shape.groups
        return Layout(self.shape.height, self.shape.reach, inner)

    def _is_heavy(self) -> bool:
        return self.shape.kernel**2 * self.shape.pairs > SHARED_WEIGHTS

    def _strips_together(self) -> int:
        limit = SHARED_NUMBERS if self.shared else PRIVATE_NUMBERS
        return limit // self._scratch_numbers(1)

    def _pack(self, weight: Array, parts: range, pool: Pool | None) -> Array:
        """(parts, K K C/G, width)."""
        rows = weight[parts.start * self.width : parts.stop * self.width]
        return pack_weight(rows, max(1, len(parts)))

    def _rows(self, strips: range) -> int:
        return len(strips) * self.shape.width

    def _scratch_numbers(self, strips: int) -> int:
        shape = self.shape
        return strips * shape.width * (self.inner * shape.groups + shape.outputs)

    def _lay(self, arena: Array, task: Task, strips: range) -> tuple[Array, Array]:
        """Columns (pixels, G, K K C/G) and products (pixels, O), which are in y without a bias."""
        pixels, outputs = self._rows(strips), self.shape.outputs
        columns = carve(arena, (pixels, self.shape.groups, self.inner))
        if task.bias is None:
            first = strips.start * self.shape.width
            return columns, task.y.reshape(-1, outputs)[first : first + pixels]
        return columns, carve(arena[columns.size :], (pixels, outputs))

    def _read(self, block: Block, strips: range) -> list[Step]:
        columns, width = block.scratch[0], self.shape.width
        at = block.within(strips)
        held = columns[at.start * width : at.stop * width]
        window = window_of(self.shape, block.task.border)
        return gather(block.task.x, window, strips.start, strips.stop, held)

    def _multiply(self, block: Block, parts: range, packed: Array) -> list[Step]:
        """With bias and ReLU, and into y."""
        columns, products = block.scratch
        groups = self.shape.groups
        if not self.shared:
            # (panels, K K C/G, width) -> (G, panels, K K C/G, width)
            panels = packed.reshape(groups, -1, *packed.shape[1:])
            # (pixels, O) -> (G, pixels, O/G)
            out = products.reshape(len(products), groups, -1).transpose(1, 0, 2)
            product = panel_products(columns.transpose(1, 0, 2), panels, out)
            return [*product, *self._finish(block, slice(None))]
        (part,) = parts
        outputs = slice(part * self.width, (part + 1) * self.width)
        seen = columns[:, part * groups // self._parts]
        product = [partial(np.matmul, seen, packed[0], out=products[:, outputs])]
        return [*product, *self._finish(block, outputs)]

    def _finish(self, block: Block, outputs: slice) -> list[Step]:
        """Bias and ReLU for some outputs, and into their place in y, which may lie in a border."""
        task = block.task
        if task.bias is None:
            return []
        rows = block.scratch[1].reshape(len(block.strips), self.shape.width, -1)[..., outputs]
        beside = task.bias.reshape(self.shape.width, -1)[:, outputs]
        steps: list[Step] = []
        whole = block.strips
        for images, first, last, place in image_blocks(whole.start, whole.stop, self.shape.height):
            held, out = by_image(rows[place], images), task.y[images, first:last, :, outputs]
            steps += add(held, beside, held, out, relu=task.relu)
        return steps


def pack_weight(weight: Array, groups: int) -> Array:
    """(O, C/G, K, K) -> (G, K * K * C/G, O/G), in the order of `gather`."""
    outputs, inputs, kernel, _ = weight.shape
    split = weight.reshape(groups, outputs // groups, inputs, kernel * kernel)
    whole = empty_panels((groups, kernel * kernel * inputs, outputs // groups), weight.dtype)
    packed = whole.reshape(groups, kernel * kernel, inputs, -1)
    for first in range(0, outputs // groups, 32):  # so few rows that their lines stay in cache
        part = slice(first, first + 32)
        packed[..., part] = split[:, part].transpose(0, 3, 2, 1)
    return whole


def gather(x: Array, window: Window, start: int, stop: int, columns: Array) -> list[Step]:
    """Copy the windows of output rows `start` to `stop` of the batch.

    Parameters
    ----------
    x : (N, H, W, C) array, its last two axes contiguous
    columns : ((stop - start) * Wo, G, K * K * C/G) array
    """
    K, G = window.kernel, window.groups
    target = columns.reshape(stop - start, window.width, G, K, K, -1)
    across = _runs(window, x.shape[2], range(window.width))
    steps: list[Step] = []
    for images, first, last, place in image_blocks(start, stop, window.height):
        block = by_image(target[place], images)
        for rows, i in _runs(window, x.shape[1], range(first, last)):
            held = block[:, rows.start - first : rows.stop - first]
            for pixels, j in across:
                inner = held[:, :, pixels.start : pixels.stop]
                if (len(i), len(j)) != (K, K):
                    steps.append(partial(inner.fill, 0))
                if i and j:
                    met = inner[..., i.start : i.stop, j.start : j.stop, :]
                    corner = (rows.start, pixels.start)
                    seen = _windows(x[images], window, corner, (i, j), met.shape)
                    steps.append(partial(np.copyto, met, seen))
    return steps


def _runs(window: Window, size: int, outputs: range) -> list[tuple[range, range]]:
    """Cut `outputs` into runs that see the same taps within `size` pixels; with these taps."""
    span = window.dilation * (window.kernel - 1) + 1
    first = min(max(-(-window.border // window.stride), outputs.start), outputs.stop)
    whole = (size + window.border - span) // window.stride + 1
    end = max(first, min(whole, outputs.stop))
    alone = [range(at, at + 1) for at in (*range(outputs.start, first), *range(end, outputs.stop))]
    runs = [(run, _taps(window, size, run.start)) for run in alone]
    return [(range(first, end), range(window.kernel)), *runs] if first < end else runs


def _taps(window: Window, size: int, output: int) -> range:
    """The taps of one output that lie within `size` pixels."""
    begin, apart = output * window.stride - window.border, window.dilation
    stop = min(window.kernel, -(-(size - begin) // apart))
    return range(min(max(0, -(begin // apart)), max(0, stop)), max(0, stop))


def _windows(
    images: Array,
    window: Window,
    output: tuple[int, int],
    taps: tuple[range, range],
    shape: tuple[int, ...],
) -> Array:
    """What some taps of the outputs from `output` on see: a view of `shape`.

    That is (images, rows, columns, G, taps down, taps across, C/G).
    """
    image, row, pixel, number = images.strides
    first, begin = (
        at * window.stride - window.border + tap.start * window.dilation
        for at, tap in zip(output, taps, strict=True)
    )
    return strided(
        images,
        shape,
        (
            image,
            window.stride * row,
            window.stride * pixel,
            shape[6] * number,
            window.dilation * row,
            window.dilation * pixel,
            number,
        ),
        (0, first, begin),
    )


def add_back(columns: Array, window: Window, rows: range, image: Array) -> None:
    """Add what belongs to the windows of output `rows` to the pixels that they were read from.

    Parameters
    ----------
    columns : (rows, Wo * K * K * C) array, in the order of `gather`
    image : (H, W, C) array
    """
    taps = columns.reshape(len(rows), window.width, window.groups, window.kernel, window.kernel, -1)
    for i, j in product(range(window.kernel), repeat=2):
        top, bottom, row = seen(window, i, image.shape[0], rows)
        left, right, column = seen(window, j, image.shape[1], range(window.width))
        if top < bottom and left < right:
            under = image[row :: window.stride, column :: window.stride]
            under = under[: bottom - top, : right - left]
            tap = taps[top:bottom, left:right, :, i, j]
            under += tap.reshape(under.shape)


def seen(window: Window, tap: int, size: int, outputs: range) -> tuple[int, int, int]:
    """Which of the `outputs` a tap sees within `size` pixels, counted from the first of them.

    Also the first pixel that it sees.
    """
    shift = tap * window.dilation - window.border
    low = min(max(outputs.start, -(shift // window.stride)), outputs.stop)
    high = max(low, min(outputs.stop, (size - 1 - shift) // window.stride + 1))
    return low - outputs.start, high - outputs.start, low * window.stride + shift
