"""The gradient of a 3x3 kernel in Winograd's domain: nine products a pixel become 2.25, or fewer.

The forward pass is, tile by tile (`winograd`),  Y = A^T [sum over c of U_c . V_c] A,  with
V = B^T d B and U = G g G^T. It is linear in U, and U in g; transposed, one after the other:

    dM   = A dY A^T          (t, t) from (m, m)    the adjoint of steps 4 and 5
    dU_p = V_p^T dM_p        (C, O) = (C, tiles) (tiles, O), one for each of the t * t positions p
    dg   = G^T dU G          (3, 3) from (t, t)    the adjoint of the kernel's transform

The sum over all pixels of the batch is the product's inner dimension: t^2 / m^2 multiplications a
pixel, channel and output, where the sum of ``x^T dY`` over nine shifts takes nine. V is transformed
anew, because keeping it since the forward pass would take t^2 / m^2 times the memory of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import memory
from repvgg_ref.cpu.layout import carve, image_runs
from repvgg_ref.cpu.pool import Pool, Stage, Step
from repvgg_ref.cpu.schedule import ConvShape
from repvgg_ref.cpu.winograd import Tiling, transforms

BLOCK_NUMBERS = 12_000_000  # of V and dM together: 48 MB of float32
ITEMS_A_THREAD = 4


class _Side(NamedTuple):
    """One operand: its tiles of `size` pixels, `step` apart, are multiplied by `matrix`."""

    padded: Array  # (N, Hp, Wp, C), tiles from pixel (0, 0) on
    matrix: Array  # (t, size)
    step: int

    def transform(
        self, tiling: Tiling, start: int, stop: int, rows: Array, out: Array
    ) -> list[Step]:
        """Strips `start` to `stop` into `out` (t, t, strips, tiles, C): rows, then columns."""
        t, size = self.matrix.shape
        image, row, _, number = self.padded.strides
        channels = self.padded.shape[3]
        pixels = (tiling.tiles - 1) * self.step + size
        strips = as_strided(
            self.padded,
            (len(self.padded), tiling.strips, size, pixels * channels),
            (image, self.step * row, row, number),
            writeable=False,
        )
        flat = carve(rows, (stop - start, t, pixels * channels))
        steps: list[Step] = [
            partial(np.matmul, self.matrix, strips[n, i:j], out=flat[place : place + j - i])
            for n, i, j, place in image_runs(start, stop, tiling.strips)
        ]
        number = flat.itemsize
        tiles = as_strided(
            flat,
            (t, stop - start, tiling.tiles, size, channels),
            (
                pixels * channels * number,
                t * pixels * channels * number,
                self.step * channels * number,
                channels * number,
                number,
            ),
            writeable=False,
        )
        # (t, strips, tiles, t, C) = (t, size) @ (t, strips, tiles, size, C)
        return [*steps, partial(np.matmul, self.matrix, tiles, out=out.transpose(0, 2, 3, 1, 4))]


def winograd_weight_gradient(
    padded_x: Array, padded_grad: Array, shape: ConvShape, m: int, threads: Pool
) -> Array:
    """``dg`` summed over the batch, (O, C/G, 3, 3), by F(m, 3).

    Parameters
    ----------
    padded_x : (N, Hp, Wp, C) array
        With its border of zeros, at least as large as ``Tiling.padded``.
    padded_grad : (N, H', W', O) array
        dY from pixel (0, 0) on, then zeros up to whole tiles, ``strips * m`` by ``tiles * m``.
    """
    tiling = Tiling(m, shape.stride, shape.height, shape.width)
    matrices = transforms(m, shape.stride, padded_x.dtype)
    of_x = _Side(padded_x, matrices.bt, tiling.step)
    of_grad = _Side(padded_grad, np.ascontiguousarray(matrices.at.T), m)
    t, groups = tiling.t, shape.groups
    total = memory.empty(
        (t * t, groups, shape.channels // groups, shape.outputs // groups), padded_x.dtype
    )
    strips = shape.images * tiling.strips
    a_strip = t * t * tiling.tiles * (shape.channels + shape.outputs)
    blocks = -(-strips * a_strip // BLOCK_NUMBERS)
    block = -(-strips // blocks)
    for start in range(0, strips, block):
        stop = min(start + block, strips)
        for stage in _stages(of_x, of_grad, tiling, start, stop, total, threads):
            threads.run(stage)
    return _kernel(total, matrices.g)


def _stages(
    of_x: _Side,
    of_grad: _Side,
    tiling: Tiling,
    start: int,
    stop: int,
    total: Array,
    threads: Pool,
) -> Iterator[Stage]:
    """Transform strips `start` to `stop`, then multiply into `total`, or add to it."""
    t, count, workers = tiling.t, stop - start, threads.threads
    channels, outputs = of_x.padded.shape[3], of_grad.padded.shape[3]
    items = min(count, workers * ITEMS_A_THREAD)
    wide = tiling.padded[1] * max(channels, outputs)
    v = memory.empty((t, t, count, tiling.tiles, channels), total.dtype)
    dm = memory.empty((t, t, count, tiling.tiles, outputs), total.dtype)
    rows = memory.empty((workers, t * wide * -(-count // items)), total.dtype)

    def transform(worker: int, item: int) -> None:
        first, last = item * count // items, (item + 1) * count // items
        part = slice(first, last)
        for side, out in ((of_x, v), (of_grad, dm)):
            for step in side.transform(
                tiling, start + first, start + last, rows[worker], out[:, :, part]
            ):
                step()

    def multiply(worker: int, p: int) -> None:
        groups, pixels = total.shape[1], count * tiling.tiles
        left = v.reshape(t * t, pixels, groups, -1)[p].transpose(1, 2, 0)
        right = dm.reshape(t * t, pixels, groups, -1)[p].transpose(1, 0, 2)
        if start == 0:
            np.matmul(left, right, out=total[p])
        else:
            total[p] += left @ right

    yield Stage(items, transform)
    yield Stage(t * t, multiply)


def _kernel(total: Array, g: Array) -> Array:
    """``G^T dU G`` in float64, rounded once: (t * t, G, C/G, O/G) -> (O, C/G, 3, 3)."""
    both = np.kron(g, g).T  # (9, t * t)
    _, groups, inputs, outputs = total.shape
    taps = np.empty((9, groups, inputs, outputs), total.dtype)
    for group in range(groups):
        some = max(1, 200_000 // (len(total) * outputs))  # input channels that fit in cache
        for first in range(0, inputs, some):
            part = total[:, group, first : first + some].astype(np.float64)
            product = both @ part.reshape(len(total), -1)
            taps[:, group, first : first + some] = product.reshape(9, -1, outputs)
    # (9, G, C/G, O/G) -> (G, O/G, C/G, 9) -> (O, C/G, 3, 3)
    return np.ascontiguousarray(taps.transpose(1, 3, 2, 0)).reshape(-1, inputs, 3, 3)
