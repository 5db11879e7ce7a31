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
from repvgg_ref.cpu.convolution import direct
from repvgg_ref.cpu.convolution.direct import Window
from repvgg_ref.cpu.convolution.layout import carve
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.convolution.tiles import CACHED_NUMBERS, Tiles
from repvgg_ref.cpu.convolution.winograd import Tiling, input_tiles, transforms
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import Pool, Stage

BLOCK_NUMBERS = 24_000_000  # of V and dM together: 96 MB of float32
ITEMS_A_THREAD = 4
DIRECT_NUMBERS = 250_000  # of columns that lie in cache
DIRECT_PIXELS = 400  # at least, so that adding to a sum costs little beside the product


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
    return _through_kernel_transform(matrices.g, total, threads)


def _through_kernel_transform(g: Array, total: Array, threads: Pool) -> Array:
    """``G^T dU G`` in float64, rounded once: (t * t, G, C/G, O/G) -> (O, C/G, 3, 3)."""
    back = np.kron(g, g).T  # (9, t * t)
    positions, groups, inputs, outputs = total.shape
    grad = memory.empty((groups, outputs, inputs, 9), total.dtype)
    some = max(1, CACHED_NUMBERS // (positions * outputs))  # input channels

    def transform(worker: int, item: int) -> None:
        group, block = divmod(item, -(-inputs // some))
        part = slice(block * some, (block + 1) * some)
        of_u = total[:, group, part].reshape(positions, -1).astype(np.float64)
        # (9, some * O/G) = (9, t * t) @ (t * t, some * O/G)
        grad[group, :, part] = (back @ of_u).reshape(9, -1, outputs).transpose(2, 1, 0)

    threads.run(Stage(groups * -(-inputs // some), transform))
    return grad.reshape(groups * outputs, inputs, 3, 3)


def direct_weight_gradient(x: Array, grad_y: Array, window: Window, threads: Pool) -> Array:
    """``columns(x)^T dY`` summed over the batch, (O, C/G, K, K), for any window.

    A share of the pixels, one a thread, has a sum of its own; shares are added in order.
    """
    images, _, _, channels = x.shape
    outputs, groups, taps = grad_y.shape[3], window.groups, window.kernel**2
    rows, inner = images * window.height, taps * channels
    pixels = max(DIRECT_PIXELS, DIRECT_NUMBERS // inner)
    blocks = -(-rows * window.width // pixels)
    shares = min(threads.threads, blocks, rows)
    block = -(-rows // (-(-blocks // shares) * shares))
    blocks = -(-rows // block)
    sums = memory.empty((shares, groups, inner // groups, outputs // groups), x.dtype)
    scratch = memory.empty((threads.threads, block * window.width * inner), x.dtype)
    flat = grad_y.reshape(-1, groups, outputs // groups)

    def add(worker: int, share: int) -> None:
        first = share * blocks // shares
        for i in range(first, (share + 1) * blocks // shares):
            start, stop = i * block, min((i + 1) * block, rows)
            columns = carve(
                scratch[worker], ((stop - start) * window.width, groups, inner // groups)
            )
            for copy in direct.gather(x, window, start, stop, columns):
                copy()
            under = flat[start * window.width : stop * window.width]
            # (G, K K C/G, pixels) @ (G, pixels, O/G)
            left, right = columns.transpose(1, 2, 0), under.transpose(1, 0, 2)
            if i == first:
                np.matmul(left, right, out=sums[share])
            else:
                sums[share] += left @ right

    threads.run(Stage(shares, add))
    for other in sums[1:]:
        sums[0] += other
    total = sums[0].reshape(groups, taps, -1, outputs // groups)
    # (G, K K, C/G, O/G) -> (G, O/G, C/G, K K) -> (O, C/G, K, K)
    by_output = memory.empty((groups, outputs // groups, channels // groups, taps), x.dtype)
    for first in range(0, channels // groups, 8):  # so few that their lines stay in cache
        part = slice(first, first + 8)
        by_output[:, :, part] = total[:, :, part].transpose(0, 3, 2, 1)
    return by_output.reshape(outputs, -1, window.kernel, window.kernel)


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
