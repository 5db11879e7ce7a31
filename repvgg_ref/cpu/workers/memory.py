"""Large arrays in memory that has been used before.

A large fresh array costs more than the pass that fills it, because the kernel hands out zeroed
pages. So the memory of a large array, once nobody holds the array or a view of it, is kept for the
next request of the same size. Reference counting decides that, so no array that anyone can still
see is ever written by another.

Arrays begin at a cache line: NumPy's own begin 16 bytes after one, so that every vector of 64 bytes
is read from two lines, which slows products that pack nothing (`gemm`).
Weights that are packed want just those 16 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array

SMALL = 1 << 18  # bytes below which the C library's own reuse is as good
PATIENCE = 1000  # requests after which memory that nobody wanted is given back


LINE = 64  # bytes


def aligned(size: int) -> Array:
    """New memory of `size` bytes, uint8."""
    memory = np.empty(size + LINE, np.uint8)
    begin = -memory.ctypes.data % LINE
    return memory[begin : begin + size]


class _Idle:
    """Memory that waits for its next user, oldest first.

    Threads ask at once, and no lock could be held where one of them forks: what was looked at may
    be gone, or another's, by the time it is taken, so it is looked at again.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Array]] = []
        self._requests = 0

    def take(self, size: int) -> Array:
        """Idle memory of `size` bytes, or new."""
        self._requests += 1
        with suppress(IndexError):
            while self._waiting[0][0] < self._requests - PATIENCE:
                self._waiting.pop(0)
        for place in reversed(range(len(self._waiting))):  # the last one may still be in cache
            with suppress(IndexError):
                if self._waiting[place][1].size == size:
                    since, memory = self._waiting.pop(place)
                    if memory.size == size:
                        return memory
                    self._waiting.append((since, memory))
        return aligned(size)

    def put(self, memory: Array) -> None:
        """Keep `memory` for `take`."""
        self._waiting.append((self._requests, memory))

    def keep(self, size: int) -> None:
        """Give back to the system what waits longest, until no more than `size` bytes wait."""
        held = sum(memory.size for _, memory in list(self._waiting))
        with suppress(IndexError):
            while held > size:
                _, memory = self._waiting.pop(0)
                held -= memory.size

    def clear(self) -> None:
        """Give everything back to the system."""
        self._waiting.clear()


IDLE = _Idle()


class _Loan:
    """What NumPy keeps as the base of an array and all its views; ends with the last of them."""

    def __init__(self, memory: Array) -> None:
        self._memory, self._put = memory, IDLE.put  # at exit, `IDLE` may be gone before this is
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._put(self._memory)


def empty(shape: Iterable[int], dtype: Any, *, offset: int = 0) -> Array:
    """`numpy.empty`, `offset` bytes into a cache line, where it can in memory already mapped."""
    sizes = tuple(shape)
    size = math.prod(sizes) * np.dtype(dtype).itemsize + offset
    if size < SMALL:
        bytes_: Any = aligned(size)
    else:
        bytes_ = np.asarray(_Loan(IDLE.take(size)))
    array: Array = bytes_[offset:].view(dtype).reshape(sizes)
    return array
