"""The matrix product of many small pairs, cut into the blocks that OpenBLAS is best at.

OpenBLAS copies ("packs") both operands of a product before it multiplies: of a weight matrix that
meets 50 rows of pixels, the copy costs as much as half of the product. For AVX-512 processors it
also has kernels that multiply in place, used while rows * inner * columns <= 10^6
(kernel/x86_64/sgemm_small_kernel_permit_skylakex.c). They read the weights where they lie, so these
begin at a cache line (`memory`). Weights that are packed should begin 16 bytes after one, where
`numpy.empty` puts them.

So weights are stored as *panels* of 32 to 96 columns, and a product runs over equal blocks of 12 to
100 rows. Where those kernels do not exist, or rows cannot be cut so, a block is the whole product.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import Step

IN_PLACE_LIMIT = 1_000_000
IN_PLACE_CORES = {"skylakex", "cooperlake", "sapphirerapids"}
_WIDEST = 96  # panels that are multiplied in place
_ROWS = 12  # the in-place kernels hold rows in multiples of this; fewer cost as much
_LARGEST = 700  # rows of a weight matrix: a panel of more of them would leave the first-level cache


@cache
def multiplies_in_place() -> bool:
    """Whether NumPy's BLAS has kernels for small products that copy nothing."""
    from threadpoolctl import threadpool_info

    return any(
        info.get("internal_api") == "openblas"
        and str(info.get("architecture")).lower() in IN_PLACE_CORES
        for info in threadpool_info()
    )


def panel_width(inner: int, columns: int, rows: int) -> int:
    """How many columns of a weight matrix (inner, columns) lie together; divides `columns`.

    In place with as wide panels as equal blocks of `rows` allow; else panels of 256 columns, which
    memory delivers in longer runs than narrower ones.
    """
    if not multiplies_in_place():
        return columns
    widths = (64, 96, 48, 32, 80) if inner <= 192 else (64, 48, 32, 80)
    fitting = (
        width
        for width in widths
        if columns % width == 0 and inner <= _LARGEST and _block(rows, inner, width)
    )
    wide = 256 if columns % 256 == 0 else columns
    return next(fitting, wide)


def empty_panels(shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory for panels ``(..., K, width)``, begun where their product likes it best."""
    inner, width = shape[-2:]
    small = width <= _WIDEST and inner * width * _ROWS <= IN_PLACE_LIMIT
    return memory.empty(shape, dtype, offset=0 if small and multiplies_in_place() else 16)


def panel_products(x: Array, panels: Array, out: Array) -> list[Step]:
    """Steps for ``out = x @ weight``, a stack of products, the weight's columns cut into panels.

    Parameters
    ----------
    x : (..., rows, K) array
    panels : (..., P, K, width) array
    out : (..., rows, P * width) array
    """
    *_, count, inner, width = panels.shape
    rows = x.shape[-2]
    split = out.reshape(*out.shape[:-1], count, width)
    steps: list[Step] = []
    for start, stop, size in _blocks(rows, inner, width):
        # (..., blocks, 1, size, K) @ (..., 1, P, K, width) -> (..., blocks, P, size, width)
        many = (stop - start) // size
        left = x[..., start:stop, :]
        left = left.reshape(*left.shape[:-2], many, 1, size, inner)
        target = split[..., start:stop, :, :]
        target = target.reshape(*target.shape[:-3], many, size, count, width)
        right = panels[..., None, :, :, :]
        steps.append(partial(np.matmul, left, right, out=target.swapaxes(-2, -3)))
    return steps


@cache
def _blocks(rows: int, inner: int, width: int) -> list[tuple[int, int, int]]:
    """Cut `rows` into equal blocks, else into whole ones and a rest: ``(start, stop, size)``."""
    size = rows
    if multiplies_in_place() and width <= _WIDEST:
        most = IN_PLACE_LIMIT // (inner * width)
        size = _block(rows, inner, width) or (min(rows, most) if most >= _ROWS else rows)
    whole = rows // size * size
    return [(0, whole, size)] + ([(whole, rows, rows - whole)] if whole < rows else [])


@cache
def _block(rows: int, inner: int, width: int) -> int:
    """The largest equal blocks of `rows` that are multiplied in place; 0 if they would be small."""
    most = min(rows, IN_PLACE_LIMIT // (inner * width))
    return next((n for n in range(most, min(rows, _ROWS) - 1, -1) if rows % n == 0), 0)
