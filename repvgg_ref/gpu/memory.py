"""Device memory: a workspace kept in hand, and what to do when there is none left."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import cupy

from repvgg_ref.errors import ReportedError

P = ParamSpec("P")
R = TypeVar("R")


class DeviceMemoryError(ReportedError):
    """Not enough memory on the device."""


class Workspace:
    """Scratch memory that cuDNN asks for: the largest piece wanted so far, one for each stream.

    A captured CUDA graph keeps using the piece it saw; whoever captures keeps `held` alive.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, tuple[int, Any]] = {}

    def pointer(self, size: int, stream: int) -> int:
        """The address of at least `size` bytes for work on `stream`, 0 if none are wanted."""
        if size == 0:
            return 0
        kept, piece = self._pieces.get(stream, (0, None))
        if kept < size:
            piece = cupy.cuda.alloc(size)  # from CuPy's pool, which takes the old one back
            self._pieces[stream] = size, piece
        return int(piece.ptr)

    def held(self) -> list[Any]:
        """The pieces themselves."""
        return [piece for _, piece in self._pieces.values()]


def advises_on_memory(work: Callable[P, R]) -> Callable[P, R]:
    """Let `work` end with advice where CuPy says that the device's memory is full."""

    @wraps(work)
    def advised(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise out_of_memory(error) from error

    return advised


def out_of_memory(error: MemoryError) -> DeviceMemoryError:
    """`error` with what is free and what helps; gives the pool's unused blocks back."""
    pool = cupy.get_default_memory_pool()
    held = pool.used_bytes()
    pool.free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    return DeviceMemoryError(
        "the GPU's memory is full",
        got=f"{str(error).rstrip('.')}; {held / 2**30:.2f} GiB in use by arrays, "
        f"{free / 2**30:.2f} of {total / 2**30:.2f} GiB free",
        advice="take a smaller batch or image size, --math bf16, or gradient accumulation in "
        "training; see nvidia-smi for other programs on this GPU",
    )
