"""An open file for one process alone, on every system that has such a thing."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import IO, Any

_FAR = 1 << 30  # Windows locks bytes, and against reading: one beyond the end of what we claim


def claim(file: IO[Any]) -> bool:
    """Lock `file` until it is closed; False if another process has locked it.

    By `flock` on POSIX and `msvcrt.locking` on Windows; on a system with neither there is nobody
    to ask and the answer is True. A lock ends with its process, however that ends.
    """
    try:
        _locker()(file)
    except OSError:
        return False
    return True


def _locker() -> Callable[[IO[Any]], None]:
    for name, lock in (("fcntl", _flock), ("msvcrt", _lock_byte)):
        try:
            return partial(lock, import_module(name))
        except ImportError:
            continue
    return lambda file: None


def _flock(fcntl: Any, file: IO[Any]) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_byte(msvcrt: Any, file: IO[Any]) -> None:
    number = file.fileno()
    at = os.lseek(number, 0, os.SEEK_CUR)
    os.lseek(number, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(number, at, os.SEEK_SET)
