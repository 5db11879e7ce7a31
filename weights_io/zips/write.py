"""A plain zip writer: stored members, known sizes, fixed timestamps, aligned data."""

from __future__ import annotations

import zlib
from struct import pack
from typing import BinaryIO

from weights_io.zips import layout

_VERSION = 20
_VERSION64 = 45
_NO_TIME = 0
_NO_DATE = 0x21  # 1980-01-01, the first day there is
_PADDING_FIELD = 0x4246  # "FB", as torch pads


class ZipWriter:
    """Writes members one after the other; the same members give the same bytes."""

    def __init__(self, file: BinaryIO, alignment: int) -> None:
        self._file = file
        self._alignment = alignment
        self._at = 0
        self._directory: list[bytes] = []

    def add(self, name: str, *parts: bytes | memoryview) -> None:
        """Write one member made of `parts`; its data start at a multiple of the alignment."""
        raw_name = name.encode("utf-8")
        size, crc = 0, 0
        for part in parts:
            size += len(part)
            crc = zlib.crc32(part, crc)
        offset = self._at
        self._write(self._local_header(raw_name, size, crc))
        for part in parts:
            self._write(part)
        self._directory.append(_central_entry(raw_name, size, crc, offset))

    def finish(self) -> None:
        """Write the directory and the end record."""
        start, count = self._at, len(self._directory)
        for entry in self._directory:
            self._write(entry)
        size, end64_at = self._at - start, self._at
        if count >= layout.FULL16 or start + size >= layout.FULL32:
            versions = (_VERSION64, _VERSION64)
            rest = layout.END64.size - 12
            self._write(
                layout.END64.pack(
                    layout.END64_MAGIC, rest, *versions, 0, 0, count, count, size, start
                )
            )
            self._write(layout.LOCATOR64.pack(layout.LOCATOR64_MAGIC, 0, end64_at, 1))
        count, size, start = min(count, layout.FULL16), _narrow(size), _narrow(start)
        self._write(layout.END.pack(layout.END_MAGIC, 0, 0, count, count, size, start, 0))

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._at += len(data)

    def _local_header(self, raw_name: bytes, size: int, crc: int) -> bytes:
        extra = _extra64(size, size) if size >= layout.FULL32 else b""
        unpadded = self._at + layout.LOCAL.size + len(raw_name) + len(extra) + 4
        padding = -unpadded % self._alignment
        extra += pack("<2H", _PADDING_FIELD, padding) + b"Z" * padding
        short = _narrow(size)
        fixed = (_version(size), layout.FLAG_UTF8, layout.STORED, _NO_TIME, _NO_DATE)
        lengths = (len(raw_name), len(extra))
        header = layout.LOCAL.pack(layout.LOCAL_MAGIC, *fixed, crc, short, short, *lengths)
        return header + raw_name + extra


def _central_entry(raw_name: bytes, size: int, crc: int, offset: int) -> bytes:
    sizes = (size, size) if size >= layout.FULL32 else ()
    offsets = (offset,) if offset >= layout.FULL32 else ()
    extra = _extra64(*sizes, *offsets) if sizes or offsets else b""
    short, version = _narrow(size), _version(max(size, offset))
    fixed = (version, version, layout.FLAG_UTF8, layout.STORED, _NO_TIME, _NO_DATE)
    lengths = (len(raw_name), len(extra), 0)
    return (
        layout.CENTRAL.pack(
            layout.CENTRAL_MAGIC, *fixed, crc, short, short, *lengths, 0, 0, 0, _narrow(offset)
        )
        + raw_name
        + extra
    )


def _extra64(*values: int) -> bytes:
    return pack(f"<2H{len(values)}Q", layout.EXTRA64, 8 * len(values), *values)


def _narrow(value: int) -> int:
    return min(value, layout.FULL32)


def _version(value: int) -> int:
    return _VERSION64 if value >= layout.FULL32 else _VERSION
