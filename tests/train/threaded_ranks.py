"""Ranks as threads of this process: what MPI does, where it is not installed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from repvgg_ref.arrays import Array
from repvgg_ref.train.comm import Comm

_T = TypeVar("_T")
_PATIENCE = 30.0  # seconds, after which a rank that waits for a failed one gives up


class ThreadedRank:
    """One of `size` threads that meet at a barrier."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._slots = barrier, slots

    def sum(self, values: Array) -> Array:
        """Added in the order of the ranks, so that all get the same bits."""
        self._slots[self.rank] = values.copy()
        self._barrier.wait(_PATIENCE)
        total: Array = sum(self._slots[1:], start=self._slots[0])
        self._barrier.wait(_PATIENCE)
        return total

    def meet(self) -> None:
        """The barrier alone."""
        self._barrier.wait(_PATIENCE)

    def abort(self, code: int) -> None:
        """Break the barrier for everybody."""
        self._barrier.abort()


def on_ranks(size: int, work: Callable[[Comm], _T]) -> list[_T]:
    """What `work` returns on each of `size` ranks."""
    barrier, slots = threading.Barrier(size), [None] * size
    ranks = [ThreadedRank(rank, size, barrier, slots) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, ranks))
