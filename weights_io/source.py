"""Random access to the bytes of an open file."""

from __future__ import annotations

import os
import threading
from io import BytesIO
from typing import BinaryIO, Protocol, cast

from weights_io.errors import WeightsFileError
from weights_io.regular import IrregularFileError, open_regular
from weights_io.text import sanitize


class Readable(Protocol):
    """A run of bytes that arrays are read from: a part of a file or a member of an archive."""

    size: int

    def cost(self, length: int) -> int:
        """The bytes that reading `length` of them takes."""

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start` on."""


def require_inside(start: int, length: int, size: int) -> None:
    """Raise unless `length` bytes from `start` on lie inside a run of `size` bytes."""
    if start < 0 or length < 0 or start + length > size:
        raise WeightsFileError(
            "an array reaches outside its part of the file",
            got=f"{length} bytes at {start}",
            wanted=f"inside {size} bytes",
        )


class Source:
    """An open binary file, read by position; safe to share between threads."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = sanitize(name)
        self._file = file
        self._lock = threading.Lock()
        self.size = file.seek(0, os.SEEK_END)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Source:
        """Make a source of bytes in memory."""
        return cls(BytesIO(data), name)

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start` on, or raise before allocating them."""
        self.require(start, length)
        data = bytearray(length)
        self.read_into(start, memoryview(data))
        return bytes(data)

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start` on."""
        self.require(start, len(view))
        try:
            with self._lock:
                self._file.seek(start)
                while view:
                    count = self._file.readinto(view)  # type: ignore[attr-defined]
                    if not count:
                        raise self._too_short(start, len(view))
                    view = view[count:]
        except (OSError, ValueError) as error:  # ValueError: the file has been closed
            raise WeightsFileError(f"{self.name}: cannot be read", got=error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require(self, start: int, length: int) -> None:
        """Raise unless `length` bytes from `start` on are in the file."""
        if start < 0 or length < 0 or start + length > self.size:
            raise self._too_short(start, length)

    def _too_short(self, start: int, length: int) -> WeightsFileError:
        return WeightsFileError(
            f"{self.name}: ends too early",
            got=f"{self.size} bytes",
            wanted=f"{length} bytes at {start}",
            advice="the file is damaged: copy or download it again",
        )


class Region:
    """A run of bytes inside a source."""

    __slots__ = ("_source", "_start", "size")

    def __init__(self, source: Source, start: int, size: int) -> None:
        self._source, self._start, self.size = source, start, size

    def cost(self, length: int) -> int:
        """The bytes that reading `length` of them takes."""
        return length

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start` of the region on."""
        require_inside(start, len(view), self.size)
        self._source.read_into(self._start + start, view)


def open_source(file: str | os.PathLike[str] | BinaryIO, *, links: bool = True) -> Source:
    """Open a regular file by its path, or take a seekable binary file object as it is.

    Without `links` the path may not be that of a symbolic link.
    """
    if not isinstance(file, str | os.PathLike):
        return Source(file, getattr(file, "name", "<file object>"))
    name = sanitize(os.fspath(file))
    try:
        return Source(cast("BinaryIO", open_regular(file, links=links)), name)
    except IrregularFileError as error:
        got = error.strerror
        raise WeightsFileError(
            f"{name}: cannot be read", got=got, wanted="a weights file"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise WeightsFileError(f"{name}: cannot be opened", got=reason) from None
