"""A strict reader of the zip directory.

Every lenience of a zip reader is a place where two readers see two different files in one.
So: the archive starts at byte 0, its members follow one another without overlap or hidden
gaps, local headers agree with the directory, the directory ends where the end record starts,
and the end record, with its comment, is the end of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from struct import unpack_from
from typing import NamedTuple

from weights_io.budget import MEMBER_BYTES, MEMBER_WORK, Budget
from weights_io.errors import WeightsFileError
from weights_io.source import Source
from weights_io.text import sanitize
from weights_io.zips import layout
from weights_io.zips.member import Member

_DESCRIPTOR_BYTES = (12, 16, 20, 24)  # with or without a signature, 32 or 64 bits


class _Directory(NamedTuple):
    start: int
    size: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Entry:
    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def read_zip(source: Source, budget: Budget) -> dict[str, Member]:
    """Read the directory of a zip file and check it against the local headers."""
    directory = _find_directory(source)
    budget.charge("work", MEMBER_WORK * directory.entries, "the zip archive has too many members")
    in_memory = 2 * directory.size + MEMBER_BYTES * directory.entries
    budget.charge_objects(in_memory, "the zip directory")
    entries = _parse_entries(source.read(directory.start, directory.size), directory.entries)
    if all("/" not in entry.name for entry in entries):  # as some Windows tools write it
        entries = [replace(entry, name=entry.name.replace("\\", "/")) for entry in entries]
    for entry in entries:
        _check_entry(entry)
    members: dict[str, Member] = {}
    expected, slack = 0, False
    for entry in sorted(entries, key=lambda entry: entry.offset):
        _check_adjacent(expected, entry.offset, slack, entry.name)
        start = _check_local_header(source, entry)
        expected, slack = start + entry.packed, bool(entry.flags & layout.FLAG_DESCRIPTOR)
        if entry.name in members:
            raise _bad(f"the zip archive has two members called {sanitize(entry.name)}")
        members[entry.name] = Member(
            source, entry.name, entry.method, start, entry.packed, entry.size, entry.crc
        )
    _check_adjacent(expected, directory.start, slack, "the directory")
    return {name: member for name, member in members.items() if not name.endswith("/")}


def is_safe_name(name: str) -> bool:
    """Say whether a member's name stays inside the folder where somebody may unpack it."""
    parts = name.split("/")
    return not ("\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts))


def _bad(what: str, got: object = None, wanted: object = None) -> WeightsFileError:
    advice = "the file is damaged, or was not packed as zip files are: get it from its source again"
    return WeightsFileError(what, got=got, wanted=wanted, advice=advice)


def _find_directory(source: Source) -> _Directory:
    end_at = _find_end(source)
    _, disk, first_disk, here, entries, size, start, _ = layout.END.unpack(
        source.read(end_at, layout.END.size)
    )
    if disk or first_disk or here != entries:
        raise _bad("the zip archive is split over several disks")
    directory, stop = _Directory(start, size, entries), end_at
    locator_at = end_at - layout.LOCATOR64.size
    if locator_at >= 0:
        locator = source.read(locator_at, layout.LOCATOR64.size)
        if locator.startswith(layout.LOCATOR64_MAGIC):
            directory, stop = _find_directory64(source, locator, locator_at, directory)
    if directory.start + directory.size != stop:
        raise _bad(
            "the zip directory is not where its end record says",
            got=f"{directory.size} bytes at {directory.start}",
            wanted=f"an end at {stop}",
        )
    return directory


def _find_end(source: Source) -> int:
    """Where the end record is: it and its comment, which names no other, are the file's end."""
    if source.size < layout.END.size:
        raise _bad("the zip archive has no end record", got=f"{source.size} bytes")
    plain = source.size - layout.END.size  # without a comment, as nearly all are
    for first in (plain, max(0, plain - layout.FULL16)):
        tail = source.read(first, source.size - first)
        at = tail.rfind(layout.END_MAGIC)
        if 0 <= at <= plain - first:
            comment = layout.END.unpack_from(tail, at)[-1]
            if first + at + layout.END.size + comment == source.size:
                return first + at
    raise _bad(
        "the zip archive does not end with its end record",
        wanted="a complete file with nothing behind it but its own comment",
    )


def _find_directory64(
    source: Source, locator: bytes, locator_at: int, narrow: _Directory
) -> tuple[_Directory, int]:
    _, disk, end_at, disks = layout.LOCATOR64.unpack(locator)
    if disk or disks != 1 or end_at + layout.END64.size != locator_at:
        raise _bad("the zip64 end record is not where its locator says")
    fields = layout.END64.unpack(source.read(end_at, layout.END64.size))
    magic, rest, _, _, disk, first_disk, here, entries, size, start = fields
    if magic != layout.END64_MAGIC or rest != layout.END64.size - 12:
        raise _bad("the zip64 end record is damaged")
    if disk or first_disk or here != entries:
        raise _bad("the zip archive is split over several disks")
    wide = _Directory(start, size, entries)
    full = _Directory(layout.FULL32, layout.FULL32, layout.FULL16)
    for field, narrow_value, wide_value, unknown in zip(
        _Directory._fields, narrow, wide, full, strict=True
    ):
        if narrow_value not in (wide_value, unknown):
            raise _bad(f"the two zip end records disagree on the directory's {field}")
    return wide, end_at


def _parse_entries(data: bytes, count: int) -> list[_Entry]:
    entries, at = [], 0
    for _ in range(count):
        if at + layout.CENTRAL.size > len(data):
            raise _bad("the zip directory is cut short")
        fields = layout.CENTRAL.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, offset = fields
        if magic != layout.CENTRAL_MAGIC or disk:
            raise _bad("the zip directory is damaged")
        name_at = at + layout.CENTRAL.size
        extra_at = name_at + lengths[0]
        at = extra_at + lengths[1] + lengths[2]
        if at > len(data):
            raise _bad("the zip directory is cut short")
        extra = data[extra_at : extra_at + lengths[1]]
        size, packed, offset = _widen(extra, size, packed, offset)
        raw = data[name_at:extra_at]
        entries.append(
            _Entry(raw, _decode_name(raw, flags), flags, method, crc, packed, size, offset)
        )
    if at != len(data):
        raise _bad("the zip directory holds more than its entries")
    return entries


def _decode_name(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & layout.FLAG_UTF8 else "ascii")
    except UnicodeDecodeError:
        raise _bad("a zip member has a name that is no text", got=sanitize(raw)) from None


def _widen(extra: bytes, *values: int) -> list[int]:
    """Replace each value of 0xffffffff by its 64-bit one from the extra field (APPNOTE 4.5.3)."""
    wide = b""
    at = 0
    while at + 4 <= len(extra):
        kind, length = unpack_from("<2H", extra, at)
        if kind == layout.EXTRA64:
            wide = extra[at + 4 : at + 4 + length]
            break
        at += 4 + length
    result, taken = [], 0
    for value in values:
        if value == layout.FULL32 and taken + 8 <= len(wide):
            value = int.from_bytes(wide[taken : taken + 8], "little")
            taken += 8
        result.append(value)
    return result


def _check_entry(entry: _Entry) -> None:
    name = sanitize(entry.name)
    if entry.flags & layout.FLAG_ENCRYPTED:
        raise _bad(f"{name} is encrypted")
    if entry.flags & ~layout.FLAGS_KNOWN:
        raise _bad(f"{name} has unknown zip flags", got=f"{entry.flags:#06x}")
    if entry.method not in (layout.STORED, layout.DEFLATED):
        raise _bad(f"{name} is packed by an unknown method", entry.method, "0 (none), 8 (deflate)")
    if entry.method == layout.STORED and entry.packed != entry.size:
        raise _bad(f"{name} is stored but its two sizes differ", entry.packed, entry.size)
    if not is_safe_name(entry.name.removesuffix("/")):
        raise _bad("a zip member has a name that leaves the archive", got=name)


def _check_adjacent(expected: int, found: int, slack: bool, name: str) -> None:
    """Members follow one another; only a data descriptor may lie between them."""
    gap = found - expected
    if gap and not (slack and gap in _DESCRIPTOR_BYTES):
        raise _bad(
            "the zip archive hides bytes or its members overlap",
            got=f"{sanitize(name)} at {found}",
            wanted=f"at {expected}",
        )


def _check_local_header(source: Source, entry: _Entry) -> int:
    """Return where the data of a member starts."""
    header = source.read(entry.offset, layout.LOCAL.size)
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = (
        layout.LOCAL.unpack(header)
    )
    name_at = entry.offset + layout.LOCAL.size
    tail = source.read(name_at, name_length + extra_length)
    size, packed = _widen(tail[name_length:], size, packed)
    same = (magic, flags, method, tail[:name_length]) == (
        layout.LOCAL_MAGIC,
        entry.flags,
        entry.method,
        entry.raw_name,
    )
    wanted = (entry.crc, entry.packed, entry.size)
    deferred = bool(flags & layout.FLAG_DESCRIPTOR)
    if not same or ((crc, packed, size) != wanted and not (deferred and crc == 0)):
        raise _bad(f"{sanitize(entry.name)}: its two zip headers disagree")
    return name_at + len(tail)
