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

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import memory
from repvgg_ref.cpu.layout import carve
from repvgg_ref.cpu.pool import Pool, Stage
from repvgg_ref.cpu.schedule import ConvShape
from repvgg_ref.cpu.winograd import Tiles, Tiling, input_tiles, transforms

BLOCK_NUMBERS = 12_000_000  # of V and dM together: 48 MB of float32
ITEMS_A_THREAD = 4


def winograd_weight_gradient(
    x: Array, grad_y: Array, shape: ConvShape, padding: int, m: int, threads: Pool
) -> Array:
    """``dg`` summed over the batch, (O, C/G, 3, 3), by F(m, 3).

    Parameters
    ----------
    x : (N, H, W, C) array, its last two axes contiguous
    grad_y : (N, Ho, Wo, O) array, its last two axes contiguous
    padding : int
        Pixels of zeros around x.
    """
    tiling = Tiling(m, shape.stride, shape.height, shape.width)
    matrices = transforms(m, shape.stride, x.dtype)
    of_x = input_tiles(x, tiling, padding)
    of_grad = Tiles(grad_y, np.ascontiguousarray(matrices.at.T), m, 0, tiling.strips)
    t, groups = tiling.t, shape.groups
    per_group = shape.channels // groups, shape.outputs // groups
    total = memory.empty((t * t, groups, *per_group), x.dtype)
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
    of_x: Tiles,
    of_grad: Tiles,
    tiling: Tiling,
    start: int,
    stop: int,
    total: Array,
    threads: Pool,
) -> Iterator[Stage]:
    """Transform strips `start` to `stop`, then multiply into `total`, or add to it."""
    t, count, workers = tiling.t, stop - start, threads.threads
    channels, outputs = of_x.x.shape[3], of_grad.x.shape[3]
    items = min(count, workers * ITEMS_A_THREAD)
    v = memory.empty((t, t, count, tiling.tiles, channels), total.dtype)
    dm = memory.empty((t, t, count, tiling.tiles, outputs), total.dtype)
    wide = tiling.padded[1] * max(channels, outputs)
    rows = memory.empty((workers, -(-count // items) * t * wide), total.dtype)

    def transform(worker: int, item: int) -> None:
        first, last = item * count // items, (item + 1) * count // items
        for tiles, out in ((of_x, v), (of_grad, dm)):
            held = carve(rows[worker], (last - first, t, tiling.padded[1], out.shape[4]))
            for step in tiles.transform(start + first, start + last, held, out[:, :, first:last]):
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
