"""No search for cyclic garbage while a file is read.

A reader makes very many containers, none of which is garbage. Python's collector looks through them
again and again, which takes up to half of the time that reading takes.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pause:
    """Who reads at this moment, and whether the collector was on before."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._readers: set[object] = set()
        self._was_on = False

    def begin(self, reader: object) -> None:
        """Switch the collector off; the first of several readers sees how it was."""
        with self._lock:
            if not self._readers:
                self._was_on = gc.isenabled()
            self._readers.add(reader)
            gc.disable()

    def end(self, reader: object) -> None:
        """Switch it on again after the last reader, if it was on; twice is as good as once."""
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)
                if not self._readers and self._was_on:
                    gc.enable()

    def forget(self) -> None:
        """In a forked process: the readers are threads that it does not have."""
        self._lock = threading.RLock()
        readers, self._readers = self._readers, set()
        if readers and self._was_on:
            gc.enable()


_pause = _Pause()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pause.forget)


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch Python's collector of cyclic garbage off in the block, for all threads.

    Afterwards it is as it was before the first of the blocks that run at the same time, however
    this one ends.
    """
    reader = object()
    try:
        _pause.begin(reader)
        yield
    finally:
        try:
            _pause.end(reader)
        finally:
            _pause.end(reader)  # an interrupt may have ended the first one before it began
