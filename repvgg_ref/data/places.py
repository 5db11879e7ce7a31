"""Bytes at a place within a file."""

from __future__ import annotations

import os


def read_at(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of the file from `offset` on; any number of threads may do so at once.

    The file is opened anew each time: a data set may have more shards than a process may hold
    files, and nothing is left to close.

    Raises
    ------
    OSError
        If the file is shorter now.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        data = os.pread(descriptor, size, offset)
        while len(data) < size:  # a signal, or more than 2 GiB
            more = os.pread(descriptor, size - len(data), offset + len(data))
            if not more:
                raise OSError(f"{path}: the file ends before byte {offset + size}")
            data += more
        return data
    finally:
        os.close(descriptor)
