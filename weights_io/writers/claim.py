"""An open file for one process alone, on every system that has such a thing."""

from __future__ import annotations

import contextlib
import os
from typing import IO, Any

fcntl: Any = None
msvcrt: Any = None
try:
    import fcntl
except ImportError:
    with contextlib.suppress(ImportError):  # or a system with neither
        import msvcrt

POSIX = fcntl is not None
_FAR = 1 << 30  # Windows locks bytes, and against reading: one beyond the end of what we claim


def claim(file: IO[Any]) -> bool:
    """Lock `file` until it is closed; False if another process has locked it.

    By `flock` on POSIX and `msvcrt.locking` on Windows; on a system with neither there is nobody
    to ask and the answer is True. A lock ends with its process, however that ends.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            _lock_byte(file)
    except OSError:
        return False
    return True


def _lock_byte(file: IO[Any]) -> None:
    number = file.fileno()
    at = os.lseek(number, 0, os.SEEK_CUR)
    os.lseek(number, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(number, at, os.SEEK_SET)
