"""Regular files, and nothing else by their name.

A name may be that of a FIFO, which makes a reader wait for ever, or of a device, which has no end;
and what a name means may change between a look and the opening. So a name is opened first, without
waiting, and what was opened is looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


class IrregularFileError(OSError):
    """The name is not that of a regular file; `strerror` says of what."""

    def __init__(self, kind: str, path: object) -> None:
        super().__init__(None, kind, path)

    def __str__(self) -> str:
        """Without an error's number, since there is none."""
        return f"{self.strerror}: {self.filename!r}"


def open_regular(
    path: str | os.PathLike[str], *, create: bool = False, links: bool = True
) -> FileIO:
    """Open a regular file without buffer: to read; or, with `create`, to write into it as it is.

    A file that is created, or written to, is not reached through a symbolic link; nor, without
    `links`, is one that is read.

    Raises
    ------
    OSError
        As for `open`; `IrregularFileError` for a folder, a FIFO, a device, or a socket.
    """
    way = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    if create or not links:
        way |= getattr(os, "O_NOFOLLOW", 0)
    return FileIO(
        os.fspath(path),
        "r+" if create else "r",
        opener=lambda name, _: _regular(os.open(name, way | _FLAGS | _AT_ONCE, 0o666), name),
    )


def read_regular(path: str | os.PathLike[str], *, most: int = 1 << 30) -> bytes:
    """The content of a regular file of at most `most` bytes; raises as `open_regular` does."""
    with open_regular(path) as file:
        data = file.read(most + 1)
        while len(data) <= most and (more := file.read(most + 1 - len(data))):
            data += more
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", path)
    return data


def _regular(descriptor: int, name: str) -> int:
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise IrregularFileError(_KINDS.get(kind, "no regular file"), name)
        if _AT_ONCE:
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
