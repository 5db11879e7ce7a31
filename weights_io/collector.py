"""Fewer searches for cyclic garbage while a file is read.

A reader makes very many containers, none of which is garbage. Python's collector looks through them
again and again, which takes up to half of the time that reading takes. It is the whole process's,
so it is never switched off: it comes after every `RARELY` new containers instead of every 700, and
what others make meanwhile is found as surely. Whether it is on is nobody's affair but the user's.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = 50_021  # containers; no number that anyone else would choose, so that it is known again


class _Pause:
    """Who reads at this moment, and how often the collector came before."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reader: object | None = None
        self._before = 0

    def begin(self, reader: object) -> None:
        """Let the collector come rarely, unless it is so for another reader, or never comes."""
        with self._lock:
            before, *older = gc.get_threshold()
            if self._reader is None and 0 < before < RARELY:
                self._reader, self._before = reader, before
                gc.set_threshold(RARELY, *older)

    def end(self, reader: object) -> None:
        """Let it come as before, unless somebody else has said how often; twice is as good."""
        with self._lock:
            if self._reader is not reader:
                return
            now, *older = gc.get_threshold()
            if now == RARELY:
                gc.set_threshold(self._before, *older)
            self._reader = None

    def forget(self) -> None:
        """In a forked process: the reader may be a thread that it does not have."""
        self._lock = threading.RLock()
        if self._reader is not None:
            self.end(self._reader)


_pause = _Pause()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pause.forget)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python's collector of cyclic garbage come rarely in the block, in all threads.

    Of blocks that run at the same time one alone does so, and ends it with itself: however many
    threads read without end, the collector is back each time that one of them is done.
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
