"""The input gradient of a 3x3 convolution with stride 2: four small convolutions, one a phase.

A pixel of x with even row meets the kernel's middle row only, one with odd row the two outer ones;
the same for columns. So the pixels (2a + p, 2b + q) of grad_x see only some taps, and only the
pixels (a, b) to (a + 1, b + 1) of grad_y, call them d_00 to d_11 (row first):

    even, even                d_00 W_11
    even, odd                 d_00 W_12 + d_01 W_10
    odd,  even    d_10 W_01 + d_00 W_21
    odd,  odd     d_10 W_02 + d_00 W_22 + d_01 W_20 + d_11 W_00

W_ij is the tap's matrix (O/G, C/G). With the four side by side in the order of the last line, each
phase is one product with a run of columns: nine taps an output pixel, nothing multiplied by the
zeros that a stride inserts, and no sum in memory, as scattering nine products would need.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.direct import pack_weight
from repvgg_ref.cpu.convolution.layout import carve, image_runs
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import Pool, Stage

BLOCK_NUMBERS = 150_000  # of columns that lie in cache
BLOCK_PIXELS = 256  # at least, since each block packs the kernels for its products

# phase (row, column): the first of the four that it sees, and the taps that these meet
_PHASES: dict[tuple[int, int], tuple[int, tuple[tuple[int, int], ...]]] = {
    (0, 0): (1, ((1, 1),)),
    (0, 1): (1, ((1, 2), (1, 0))),
    (1, 0): (0, ((0, 1), (2, 1))),
    (1, 1): (0, ((0, 2), (2, 2), (2, 0), (0, 0))),
}


def fits(shape: ConvShape, padding: int) -> bool:
    """Whether `stride_2_input_gradient` covers the convolution."""
    return (shape.kernel, shape.stride, shape.dilation, padding) == (3, 2, 1, 1)


def stride_2_input_gradient(
    grad_y: Array, weight: Array, shape: ConvShape, grad_x: Array, threads: Pool
) -> None:
    """Fill `grad_x` (N, H, W, C) from `grad_y` (N, Ho, Wo, O) and `weight` (O, C/G, 3, 3)."""
    groups, width = shape.groups, shape.width
    inner = shape.outputs // groups
    matrices = _matrices(weight, groups)
    rows = shape.images * shape.height
    pixels = max(BLOCK_PIXELS, BLOCK_NUMBERS // (4 * shape.outputs))
    block = min(-(-rows // threads.threads), -(-pixels // width))
    numbers = block * width * (4 * shape.outputs + shape.channels)
    scratch = memory.empty((threads.threads, numbers), grad_y.dtype)

    def fill(worker: int, item: int) -> None:
        start, stop = item * block, min((item + 1) * block, rows)
        columns = carve(scratch[worker], ((stop - start), width, groups, 4, inner))
        out = carve(scratch[worker, columns.size :], ((stop - start) * width, shape.channels))
        for n, first, last, place in image_runs(start, stop, shape.height):
            _gather(grad_y[n, first : last + 1], columns[place : place + last - first])
        flat = columns.reshape(-1, groups, 4 * inner).transpose(1, 0, 2)
        for (p, q), (begin, matrix) in matrices.items():
            # (G, pixels, C/G) = (G, pixels, k O/G) @ (G, k O/G, C/G)
            seen = flat[:, :, begin * inner : begin * inner + matrix.shape[1]]
            np.matmul(seen, matrix, out=out.reshape(len(out), groups, -1).transpose(1, 0, 2))
            image_rows = out.reshape(stop - start, width, -1)
            for n, first, last, place in image_runs(start, stop, shape.height):
                target = grad_x[n, p::2, q::2][first:last]
                there = image_rows[place : place + len(target), : target.shape[1]]
                np.copyto(target, there)

    threads.run(Stage(-(-rows // block), fill))


def _matrices(weight: Array, groups: int) -> dict[tuple[int, int], tuple[int, Array]]:
    """For each phase its first column and its taps, (G, k O/G, C/G): views of one array."""
    order = [3 * i + j for _, met in _PHASES.values() for i, j in met]
    taps = pack_weight(weight, groups).reshape(groups, 9, weight.shape[1], -1)
    _, _, channels, inner = taps.shape
    packed = memory.empty((groups, channels, 9, inner), weight.dtype)
    for place, tap in enumerate(order):
        packed[:, :, place] = taps[:, tap]
    columns = packed.reshape(groups, channels, 9 * inner).swapaxes(1, 2)  # (G, 9 O/G, C/G)
    matrices, start = {}, 0
    for phase, (first, met) in _PHASES.items():
        matrices[phase] = first, columns[:, start : start + len(met) * inner]
        start += len(met) * inner
    return matrices


def _gather(grad: Array, columns: Array) -> None:
    """Rows into (h, W, G, 4, O/G), ordered as above; `grad` has a row more, or not."""
    split = grad.reshape(*grad.shape[:2], columns.shape[2], -1)
    height, below = len(columns), len(grad) - 1
    columns[below:, :, :, (0, 3)] = 0
    columns[:, -1, :, 2:] = 0
    columns[:below, :, :, 0] = split[1:]
    columns[:, :, :, 1] = split[:height]
    columns[:, :-1, :, 2] = split[:height, 1:]
    columns[:below, :-1, :, 3] = split[1:, 1:]
