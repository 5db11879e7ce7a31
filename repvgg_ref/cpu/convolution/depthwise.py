"""Depthwise convolution in NHWC: every channel by its own kernel, tap by tap.

    y[p, c] = b[c] + sum_t x[s p + t, c] w[t, c]

There is no product of matrices to win with: one multiplication and one addition a tap, each over
whole rows of pixels, on so few rows that they stay in cache.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.direct import seen, window_of
from repvgg_ref.cpu.convolution.layout import by_image, carve, image_blocks
from repvgg_ref.cpu.convolution.schedule import (
    Block,
    Convolution,
    ConvShape,
    Layout,
    Task,
    rectified,
)
from repvgg_ref.cpu.workers.pool import Pool, Step

NUMBERS = 60_000  # sums and products of one block: 240 KB of float32
FEW_CHANNELS = 256  # below, NumPy's inner loops would be short: kernels are repeated along a row


def is_depthwise(shape: ConvShape) -> bool:
    """Whether every channel has one kernel and gives one output."""
    return shape.groups == shape.channels == shape.outputs > 1


class DepthwiseConvolution(Convolution):
    """Taps one after the other; all of a block is one part of work."""

    writes = False

    def _layout(self) -> Layout:
        return Layout(self.shape.height, self.shape.reach, self.shape.kernel**2)

    def _is_heavy(self) -> bool:
        return False

    def _strips_together(self) -> int:
        return NUMBERS // self._scratch_numbers(1)

    def _panel_width(self) -> int:
        return self.shape.outputs

    def _pack(self, weight: Array, parts: range, pool: Pool | None) -> Array:
        """(C, 1, K, K) -> (1, K, K, Wo or 1, C)."""
        kernels = weight[:, 0].transpose(1, 2, 0)[:, :, None]
        times = self.shape.width if self.shape.outputs < FEW_CHANNELS else 1
        return np.ascontiguousarray(np.repeat(kernels, times, axis=2))[None]

    def _rows(self, strips: range) -> int:
        return len(strips) * self.shape.width

    def _scratch_numbers(self, strips: int) -> int:
        return 2 * strips * self.shape.width * self.shape.outputs

    def _lay(self, arena: Array, task: Task, strips: range) -> tuple[Array, Array]:
        """Sums and products, (strips, Wo, C) each."""
        shape = (len(strips), self.shape.width, self.shape.outputs)
        sums = carve(arena, shape)
        return sums, carve(arena[sums.size :], shape)

    def _read(self, block: Block, strips: range) -> list[Step]:
        return []

    def _multiply(self, block: Block, parts: range, packed: Array) -> list[Step]:
        """With bias and ReLU, and into y."""
        task, strips = block.task, block.strips
        steps: list[Step] = []
        for images, first, last, place in image_blocks(
            strips.start, strips.stop, self.shape.height
        ):
            sums, products = (by_image(each[place], images) for each in block.scratch)
            y = task.y[images, first:last]
            start: Any = 0 if task.bias is None else task.bias.reshape(self.shape.width, -1)
            steps.append(partial(np.copyto, sums, start))
            steps += self._taps(task, images, range(first, last), sums, products, packed[0])
            if task.relu:
                steps.append(rectified(sums, y))
            else:
                steps.append(partial(np.copyto, y, sums))
        return steps

    def _taps(
        self,
        task: Task,
        images: slice,
        rows: range,
        sums: Array,
        products: Array,
        kernels: Array,
    ) -> list[Step]:
        """Add what each tap meets; at a border of zeros that is less than all outputs."""
        x, window, steps = task.x[images], window_of(self.shape, task.border), list[Step]()
        stride = window.stride
        for i, j in product(range(window.kernel), repeat=2):
            top, bottom, row = seen(window, i, x.shape[1], rows)
            left, right, column = seen(window, j, x.shape[2], range(window.width))
            if top < bottom and left < right:
                met = x[:, row::stride, column::stride][:, : bottom - top, : right - left]
                some = slice(None), slice(top, bottom), slice(left, right)
                weight = kernels[i, j, : right - left]  # all of it where it is one pixel's
                steps.append(partial(np.multiply, met, weight, out=products[some]))
                steps.append(partial(np.add, sums[some], products[some], out=sums[some]))
        return steps
