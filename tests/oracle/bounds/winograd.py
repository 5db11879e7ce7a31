"""Winograd's convolution in emulated arithmetic, straight from equation 8 of arXiv 1509.09308."""

from __future__ import annotations

from itertools import product

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.programs.block import BlockProgram
from tests.oracle.bounds.arithmetic import Arithmetic, Rounding

# Lavin & Gray 2016, section 4.1 and 4.3, as printed: (B^T, G, A^T).
F2 = (
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    [[1, 1, 1, 0], [0, 1, -1, -1]],
)
F4 = (
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)
# NNPACK's F(6, 3): points 0, 1, -1, 2, -2, 1/2, -1/2, infinity; other signs and scales than ours.
F6 = (
    [
        [1, 0, -21 / 4, 0, 21 / 4, 0, -1, 0],
        [0, 1, 1, -17 / 4, -17 / 4, 1, 1, 0],
        [0, -1, 1, 17 / 4, -17 / 4, -1, 1, 0],
        [0, 1 / 2, 1 / 4, -5 / 2, -5 / 4, 2, 1, 0],
        [0, -1 / 2, 1 / 4, 5 / 2, -5 / 4, -2, 1, 0],
        [0, 2, 4, -5 / 2, -5, 1 / 2, 1, 0],
        [0, -2, 4, 5 / 2, -5, -1 / 2, 1, 0],
        [0, -1, 0, 21 / 4, 0, -21 / 4, 0, 1],
    ],
    [
        [1, 0, 0],
        [-2 / 9, -2 / 9, -2 / 9],
        [-2 / 9, 2 / 9, -2 / 9],
        [1 / 90, 1 / 45, 2 / 45],
        [1 / 90, -1 / 45, 2 / 45],
        [32 / 45, 16 / 45, 8 / 45],
        [32 / 45, -16 / 45, 8 / 45],
        [0, 0, 1],
    ],
    [
        [1, 1, 1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 1 / 2, -1 / 2, 0],
        [0, 1, 1, 4, 4, 1 / 4, 1 / 4, 0],
        [0, 1, -1, 8, -8, 1 / 8, -1 / 8, 0],
        [0, 1, 1, 16, 16, 1 / 16, 1 / 16, 0],
        [0, 1, -1, 32, -32, 1 / 32, -1 / 32, 1],
    ],
)
PRINTED = {2: F2, 4: F4, 6: F6}


def winograd_block(
    program: BlockProgram, x: Array, m: int, a: Arithmetic, scaled: str = "G"
) -> Array:
    """The fused block with ReLU: (N, C, H, W) -> (N, O, H, W), transforms kept in memory.

    `scaled` names the matrix whose rows bear the denominators, G as printed, B or A.
    """
    bt, g, at = (np.asarray(matrix, np.float64) for matrix in PRINTED[m])
    denominators = 1 / np.where(g[:, :1] != 0, g[:, :1], 1)
    if scaled != "G":
        g = g * denominators
    if scaled == "B":
        bt = bt / denominators
    if scaled == "A":
        at = at / denominators.T
    weight, bias = program.fused_kernel()
    u = _both_sides(a.add(g), a.read(weight), a.add, a.add)
    n, _, height, width = x.shape
    rows, columns = -(-height // m), -(-width // m)
    padded = np.pad(a.read(x), ((0, 0), (0, 0), (1, rows * m + 1), (1, columns * m + 1)))
    y = np.zeros((n, len(weight), rows * m, columns * m))
    per_group = weight.shape[1]
    out_per_group = len(weight) // program.groups
    for i, j in product(range(rows), range(columns)):
        tile = padded[:, :, i * m : i * m + m + 2, j * m : j * m + m + 2]
        v = a.read(_both_sides(bt, tile, a.add, a.write))  # (N, C, m + 2, m + 2)
        for o, kernel in enumerate(a.read(u)):
            first = o // out_per_group * per_group
            terms = a.add(v[:, first : first + per_group] * kernel)
            total = np.zeros(terms[:, 0].shape)
            for c in range(per_group):
                total = a.add(total + terms[:, c])
            y[:, o, i * m : i * m + m, j * m : j * m + m] = _both_sides(
                at, a.write(total), a.add, a.write
            )
    z = a.write(y[:, :, :height, :width] + a.write(bias)[:, None, None])
    return np.maximum(z, 0)


def _both_sides(matrix: Array, x: Array, add: Rounding, write: Rounding) -> Array:
    """``matrix @ x @ matrix.T``, rounded after every multiplication and addition."""
    once = write(_dot(matrix, x, add))
    return write(_dot(matrix, once.swapaxes(-1, -2), add).swapaxes(-1, -2))


def _dot(matrix: Array, x: Array, add: Rounding) -> Array:
    rows = []
    for row in matrix:
        total = np.zeros((*x.shape[:-2], x.shape[-1]))
        for k, factor in enumerate(row):
            if factor:
                total = add(total + add(factor * x[..., k, :]))
        rows.append(total)
    return np.stack(rows, axis=-2)
