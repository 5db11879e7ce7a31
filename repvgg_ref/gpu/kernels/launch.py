"""How a `.cu` file becomes a kernel, and the shapes in which kernels are launched.

Every file is compiled once for each storage type, with `storage.cuh` and `rows.cuh` before it; CuPy
keeps the binaries. A launch takes the current stream, never waits, and its grid depends on shapes
only: the same input gives the same bits on every device of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError

THREADS = 256  # of a block, at most; the `.cu` files size their shared memory by it
NULL = np.uint64(0)  # an absent array; CuPy's `None` would be an absent argument

IO_NAMES = {
    "float64": "FLOAT64",
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "uint16": "BFLOAT16",  # its bits, where ml_dtypes is not installed
}
_HEADERS = ("storage.cuh", "rows.cuh")
FILES = tuple(sorted(path.name for path in Path(__file__).parent.glob("*.cu")))


def source(file: str) -> str:
    """The text of `file` as it is compiled."""
    return "\n".join(read(name) for name in (*_HEADERS, file))


def read(name: str) -> str:
    """One file of this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def options(dtype: Any) -> tuple[str, ...]:
    """What the compiler is told for arrays stored as `dtype`."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in IO_NAMES:
        raise ShapeError(
            f"kernels: no kernel for arrays of {name}", got=name, wanted=list(IO_NAMES)
        )
    return ("-std=c++17", f"-DIO_{IO_NAMES[name]}")


def launch(
    file: str,
    name: str,
    dtype: Any,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Any],
) -> None:
    """Run kernel `name` of `file` on the current stream; `None` among the arguments is NULL."""
    kernel = _kernel(file, name, options(dtype))
    kernel(grid, block, tuple(NULL if each is None else each for each in arguments))


@cache
def _module(file: str, settings: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=source(file), options=settings)


@cache
def _kernel(file: str, name: str, settings: tuple[str, ...]) -> Callable[..., None]:
    kernel: Callable[..., None] = _module(file, settings).get_function(name)
    return kernel


def real_dtype(dtype: Any) -> Any:
    """The dtype of statistics, coefficients and sums for arrays stored as `dtype`."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


class Rows(NamedTuple):
    """How (rows, C) is cut: blocks of `lanes` channel vectors x `height` rows, see `split_rows`."""

    length: int
    channels: int
    width: int
    lanes: int
    height: int
    tiles: int
    rows_per_chunk: int
    chunks: int

    @property
    def block(self) -> tuple[int, int]:
        """Threads of a block."""
        return self.lanes, self.height

    def grid(self, arrays: int = 1) -> tuple[int, int, int]:
        """Blocks: row chunks, channel tiles, arrays."""
        return self.chunks, self.tiles, arrays

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What every kernel over rows is told: rows, C, rows of a chunk, vector width."""
        return (
            np.int64(self.length),
            np.int32(self.channels),
            np.int64(self.rows_per_chunk),
            np.int32(self.width),
        )


def split_rows(
    arrays: Sequence[Array | None], *, least_rows: int, blocks: int, slices: int = 1
) -> Rows:
    """Cut arrays of one shape, seen as (rows, C), into chunks of rows and tiles of channels.

    A warp reads up to 32 neighbouring vectors of 16 bytes. `least_rows` a chunk bound the traffic
    of partial sums, `blocks` is about how many blocks there should be in all; `slices` > 1 cuts
    the rows into as many equal parts, each chunked on its own (one image each).
    """
    present = [array for array in arrays if array is not None]
    channels = present[0].shape[-1]
    length = present[0].size // channels // slices if channels else 0
    width = vector_width(present, channels)
    vectors = max(channels // width, 1)
    tiles = -(-vectors // 32)
    lanes = -(-vectors // tiles)
    height = max(1, min(THREADS // lanes, length))
    wanted = max(least_rows, -(-length * tiles * slices // blocks))
    rows_per_chunk = -(-wanted // height) * height
    chunks = max(1, -(-length // rows_per_chunk))
    return Rows(length, channels, width, lanes, height, tiles, rows_per_chunk, chunks)


def vector_width(arrays: Sequence[Array], channels: int) -> int:
    """Elements of a 16-byte access if every row of every array allows it, else 1."""
    width = 16 // max(array.itemsize for array in arrays)
    aligned = all(array.data.ptr % 16 == 0 for array in arrays)  # type: ignore[attr-defined]
    return width if aligned and channels % width == 0 else 1


def require_arrays(operator: str, shape: tuple[int, ...], dtype: Any, **arrays: Any) -> None:
    """Raise `ShapeError` unless each array that is there has `shape` and `dtype`, C-contiguous."""
    wanted = (shape, np.dtype(dtype), True)
    for name, array in arrays.items():
        if array is None:
            continue
        got = (array.shape, array.dtype, bool(array.flags.c_contiguous))
        if got != wanted:
            raise ShapeError(
                f"{operator}: {name} must be a C-contiguous array of {np.dtype(dtype).name} "
                f"and shape {shape}",
                got=f"{array.dtype.name}, {array.shape}, contiguous: {got[2]}",
                wanted=f"{np.dtype(dtype).name}, {shape}",
            )


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """New memory on the device."""
    import cupy

    new: Array = cupy.empty(shape, dtype)
    return new
