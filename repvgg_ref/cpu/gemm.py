"""The matrix product of many small pairs, cut into the blocks that OpenBLAS is best at.

OpenBLAS copies ("packs") both operands of a product before it multiplies: of a weight matrix that
meets 50 rows of pixels, the copy costs as much as a third of the product. For AVX-512 processors
it also has kernels that multiply in place, used while rows * inner * columns <= 10^6
(kernel/x86_64/sgemm_small_kernel_permit_skylakex.c). Measured here on one core, in GFLOP/s: packed
135-160, in place 180-215 for up to 256 channels; peak 203 at 2048^3, packed.

So weights are stored as *panels* of 32 to 96 columns, and a product runs over blocks of some 24 to
100 rows. Where those kernels do not exist, or a weight matrix is too large for the cache, a block
is the whole product.

Where in a cache line a panel begins makes up to a quarter of the time; where the pixels and the
result do makes none. In place it is read 64 bytes at a time, so it should begin a line: 191 GFLOP/s
for (128, 64) by 196 rows, 165 elsewhere; 182 and 149 for (576, 64) by 336. While it is packed, 16
bytes off are better, perhaps since each read then also fetches the next line: 138 and 115 for
(1536, 2048) by 112 rows, 107 and 85 for (512, 512) by 64. `numpy.empty` is off by 16 or 48.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import memory
from repvgg_ref.cpu.pool import Step

IN_PLACE_LIMIT = 1_000_000
IN_PLACE_CORES = {"skylakex", "cooperlake", "sapphirerapids"}
_WIDEST = 96  # panels that are multiplied in place
_ROWS = 12  # the in-place kernels hold rows in multiples of this


@cache
def multiplies_in_place() -> bool:
    """Whether NumPy's BLAS has kernels for small products that copy nothing."""
    from threadpoolctl import threadpool_info

    return any(
        info.get("internal_api") == "openblas"
        and str(info.get("architecture")).lower() in IN_PLACE_CORES
        for info in threadpool_info()
    )


def panel_width(inner: int, columns: int, rows: int, *, reused: bool = False) -> int:
    """How many columns of a weight matrix lie together; divides `columns`.

    In place pays while a weight matrix fits the second-level cache beside the pixels (a larger one
    if it is `reused` block after block), and where there are so few rows that packing the weights
    would cost more than multiplying by them. Else packing itself is quicker on panels of 256
    columns, which memory delivers in longer runs.
    """
    if not multiplies_in_place():
        return columns
    widths: tuple[int, ...] = (256,)
    if inner <= 128 or rows <= 24:
        widths = (64, 96, 48, 32, 80)
    elif inner <= 192:
        widths = (64, 48, 32, 80)
    elif reused and inner <= 650:
        widths = (64, 48, 32)
    return next((width for width in widths if columns % width == 0), columns)


def empty_panels(shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory for panels ``(..., K, width)``, begun where their product likes it best."""
    return memory.empty(shape, dtype, offset=0 if _in_place(*shape[-2:]) else 16)


def to_panels(matrices: Array, width: int) -> Array:
    """(..., K, columns) -> (..., panels, K, width); a view if one panel is all."""
    *lead, inner, columns = matrices.shape
    if columns == width:
        return matrices[..., None, :, :]
    panels = empty_panels((*lead, columns // width, inner, width), matrices.dtype)
    panels[...] = matrices.reshape(*lead, inner, columns // width, width).swapaxes(-2, -3)
    return panels


def panel_products(x: Array, panels: Array, out: Array) -> list[Step]:
    """Steps for ``out = x @ weight``, a stack of products, `panels` being ``to_panels(weight)``.

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
    """Cut `rows` into whole blocks of one size and a rest: ``(start, stop, size of a block)``."""
    size = rows
    if _in_place(inner, width):
        most = min(rows, IN_PLACE_LIMIT // (inner * width))
        size = min(range(most, most // 2, -1), key=lambda size: _wasted(rows, size))
    whole = rows // size * size
    return [(0, whole, size)] + ([(whole, rows, rows - whole)] if whole < rows else [])


def _in_place(inner: int, width: int) -> bool:
    """Whether a product with a panel of (inner, width) is made so small that nothing is copied."""
    few = width <= _WIDEST and inner * width * _ROWS <= IN_PLACE_LIMIT
    return few and multiplies_in_place()


def _wasted(rows: int, size: int) -> int:
    """How many rows' time the kernels lose at the ends of blocks of `size`, three a call."""
    blocks, rest = divmod(rows, size)
    lost = blocks * (3 + -size % _ROWS)
    return lost + 3 + -rest % _ROWS if rest else lost
