"""One member of a zip archive, read lazily with its checksum verified."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from weights_io.errors import WeightsFileError
from weights_io.limits import Limits
from weights_io.source import Source, require_inside
from weights_io.text import sanitize
from weights_io.zips.layout import STORED

_BLOCK = 1 << 18


class Member:
    """The bytes of one archive member.

    The first read goes over the whole member once and verifies its CRC-32 on the way, straight
    in the caller's buffer; later reads touch only what they ask for.
    """

    __slots__ = ("_crc", "_method", "_packed", "_source", "_start", "_verified", "name", "size")

    def __init__(
        self, source: Source, name: str, method: int, start: int, packed: int, size: int, crc: int
    ) -> None:
        self.name, self.size = name, size
        self._source, self._method, self._start = source, method, start
        self._packed, self._crc, self._verified = packed, crc, False

    @property
    def lacks_checksum(self) -> bool:
        """Whether there are bytes, and a zero where their checksum should be."""
        return self.size > 0 and self._crc == 0

    def take_unchecked(self) -> None:
        """Ask for no checksum: the caller knows that the writer made none."""
        self._verified = True

    def cost(self, length: int) -> int:
        """The bytes that reading `length` of them takes: all, where they have to be inflated."""
        return length if self._method == STORED else self.size

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start` of the member on."""
        require_inside(start, len(view), self.size)
        end = start + len(view)
        if self._method != STORED:
            self._inflate_into(start, view)
            return
        if self._verified:
            self._source.read_into(self._start + start, view)
            return
        crc = self._stored_crc(0, start, 0)
        self._source.read_into(self._start + start, view)
        crc = zlib.crc32(view, crc)
        self._verify(self._stored_crc(end, self.size, crc))

    def read(self, limits: Limits) -> bytes:
        """Return the whole member, which may be no larger than a header."""
        limits.enforce("header_bytes", self.size, f"{sanitize(self.name)} is too large")
        return self.read_all()

    def read_all(self) -> bytes:
        """Return the whole member; the caller has bounded `size`."""
        data = bytearray(self.size)
        self.read_into(0, memoryview(data))
        return bytes(data)

    def head(self, length: int) -> bytes:
        """Return the first bytes, at most `length`, with no checksum verified yet."""
        if self._method == STORED:
            return self._source.read(self._start, min(length, self.size))
        return next(self._inflated(length), b"")

    def _stored_crc(self, start: int, end: int, crc: int) -> int:
        while start < end:
            block = self._source.read(self._start + start, min(_BLOCK, end - start))
            crc = zlib.crc32(block, crc)
            start += len(block)
        return crc

    def _verify(self, crc: int) -> None:
        if crc != self._crc and not self._verified:
            raise WeightsFileError(
                f"the checksum of {sanitize(self.name)} is wrong",
                got=f"{crc:08x}",
                wanted=f"{self._crc:08x}",
                advice="the file is damaged: copy or download it again",
            )
        self._verified = True

    def _inflate_into(self, start: int, view: memoryview) -> None:
        crc, position = 0, 0
        for block in self._inflated():
            crc = zlib.crc32(block, crc)
            first = max(start, position)
            last = min(start + len(view), position + len(block))
            if first < last:
                view[first - start : last - start] = block[first - position : last - position]
            position += len(block)
        self._verify(crc)

    def _inflated(self, most: int = _BLOCK) -> Iterator[bytes]:
        """Yield the inflated bytes in blocks of at most so many; in total `size`, or an error."""
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        read = total = 0
        try:
            while not engine.eof:
                packed = engine.unconsumed_tail
                if not packed and read < self._packed:
                    packed = self._source.read(self._start + read, min(_BLOCK, self._packed - read))
                    read += len(packed)
                block = engine.decompress(packed, most)
                total += len(block)
                if total > self.size or not (packed or block):
                    break
                if block:
                    yield block
        except zlib.error as error:
            raise self._bad_deflate(error) from None
        left_over = engine.unused_data or engine.unconsumed_tail or read < self._packed
        if not engine.eof or total != self.size or left_over:
            raise self._bad_deflate(f"{total} bytes")

    def _bad_deflate(self, got: object) -> WeightsFileError:
        return WeightsFileError(
            f"{sanitize(self.name)} does not decompress",
            got=got,
            wanted=f"{self.size} bytes",
            advice="the file is damaged: copy or download it again",
        )
