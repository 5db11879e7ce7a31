"""The bytes of a pickle, read from front to back."""

from __future__ import annotations

from weights_io.errors import WeightsFileError
from weights_io.limits import Limits
from weights_io.source import Source

_CHUNK = 1 << 16
_SHORT = 80  # bytes of a line


class Tape:
    """A forward reader with a small buffer; large payloads are stepped over, not read.

    Attributes
    ----------
    buffer : bytes
        Some bytes of the source.
    at : int
        Where in them the next one is; behind the last of them, `fill` comes first.
    """

    def __init__(self, source: Source, start: int, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self._short = min(_SHORT, limits.text_bytes)
        self._start = start
        self._skipped = 0
        self._base = start  # position of the buffer's first byte
        self.buffer = b""
        self.at = 0

    @property
    def position(self) -> int:
        """Where the next byte stands in the source."""
        return self._base + self.at

    def byte(self) -> int:
        """Return the next byte."""
        if self.at == len(self.buffer):
            self.fill(1)
        self.at += 1
        return self.buffer[self.at - 1]

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes, which the caller has bounded."""
        end = self.at + length
        if end > len(self.buffer):
            self.fill(length)
            end = length
        self.at = end
        return self.buffer[end - length : end]

    def number(self, length: int) -> int:
        """Return the next `length` bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(length), "little")

    def line(self) -> bytes:
        """Return the bytes up to the next line feed, which is consumed."""
        end = self.buffer.find(b"\n", self.at)
        if 0 <= end <= self.at + self._short:  # names, nearly always
            start, self.at = self.at, end + 1
            return self.buffer[start:end]
        line = b""
        while (end := self.buffer.find(b"\n", self.at)) < 0:
            line += self.take(len(self.buffer) - self.at)
            self.limits.enforce("text_bytes", len(line), "the pickle has too long a line")
            self.fill(1)
        line += self.take(end - self.at)
        self.limits.enforce("text_bytes", len(line), "the pickle has too long a line")
        self.at += 1
        return line

    def skip(self, length: int) -> int:
        """Step over `length` bytes that must be there; return where they start."""
        self.require(length)
        start = self.position
        self._skipped += length
        if self.at + length <= len(self.buffer):
            self.at += length
        else:
            self._base, self.buffer, self.at = start + length, b"", 0
        return start

    def require(self, length: int) -> None:
        """Raise unless at least `length` bytes follow."""
        left = self.source.size - self.position
        if length > left:
            raise WeightsFileError(
                "the pickle is cut short",
                got=f"{left} bytes at {self.position}",
                wanted=length,
                advice="the file is damaged: copy or download it again",
            )

    def fill(self, length: int) -> None:
        """Have at least `length` bytes in the buffer from `at` on, which is its beginning then."""
        self.require(length)
        start = self.position
        read = start - self._start - self._skipped
        self.limits.enforce("pickle_bytes", read, "the pickle is too large")
        size = min(max(length, _CHUNK), self.source.size - start)
        self._base, self.buffer, self.at = start, self.source.read(start, size), 0
