"""The safetensors container: a JSON header, then the arrays back to back.

Layout: a 64-bit little-endian header size, the header, the data. The header maps each name to
``{"dtype", "shape", "data_offsets": [begin, end]}``; the offsets count from the start of the
data and must cover all of it without holes or overlap.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from weights_io.budget import Budget
from weights_io.dtypes import OTHER_SAFETENSORS, STORED, decode, kept_bytes
from weights_io.errors import WeightsFileError
from weights_io.lazy import LazyArray
from weights_io.pickles.inert import Inert
from weights_io.readers.contents import Contents
from weights_io.readers.metadata import parse_json, parse_text_metadata
from weights_io.source import Region, Source
from weights_io.strided import read_elements
from weights_io.text import sanitize

_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_PARSED_BYTES = 24  # in memory, at most, of a header's byte: its text, and what is made of it
DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class _Entry(NamedTuple):
    dtype: str  # ours, or safetensors' own for what is stepped over
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(source: Source, budget: Budget) -> Contents:
    """Read and check the header; the arrays stay in the file."""
    header_size = int.from_bytes(source.read(0, 8), "little")
    source.require(8, header_size)
    in_memory = _PARSED_BYTES * header_size
    budget.charge_objects(in_memory, "the safetensors header")
    text = source.read(8, header_size)
    if not text.startswith(b"{"):
        raise _lie("the header does not start with {")
    header = parse_json(text, "the safetensors header", budget)
    metadata = parse_text_metadata(header.pop("__metadata__", {}))
    data_start = 8 + header_size
    entries = {name: _parse_entry(name, entry, budget) for name, entry in header.items()}
    _check_cover(entries, source.size - data_start)
    root = {
        name: _array(entry, Region(source, data_start + entry.begin, entry.end - entry.begin))
        for name, entry in entries.items()
    }
    return Contents("safetensors", root, metadata)


def _parse_entry(name: str, entry: object, budget: Budget) -> _Entry:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _lie(f"{sanitize(name)} has other fields than dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if type(dtype) is not str or not (dtype in DTYPES or dtype in OTHER_SAFETENSORS):
        raise WeightsFileError(
            f"the safetensors header is wrong, or of a newer version: {sanitize(name)} has a dtype "
            "that is not known here",
            got=sanitize(dtype),
            wanted=", ".join((*DTYPES, *OTHER_SAFETENSORS)),
            advice="save the weights as F32",
        )
    shape, offsets = _integers(entry["shape"]), _integers(entry["data_offsets"])
    if shape is None or offsets is None or len(offsets) != 2:
        raise _lie(f"{sanitize(name)} has a shape or offsets that are no list of integers")
    begin, end = offsets
    if dtype in OTHER_SAFETENSORS:
        bits = budget.admit(shape, 0, name) * OTHER_SAFETENSORS[dtype]
        if 8 * (end - begin) != bits:
            raise _lie(
                f"{sanitize(name)} has offsets that do not fit its shape",
                end - begin,
                f"{bits} bits",
            )
        return _Entry(dtype, shape, begin, end)
    itemsize = STORED[DTYPES[dtype]].itemsize
    wanted = budget.admit(shape, kept_bytes(DTYPES[dtype]), name) * itemsize
    if dtype == "BF16":
        budget.charge_copy(wanted, name)
    if end - begin != wanted:
        raise _lie(f"{sanitize(name)} has offsets that do not fit its shape", end - begin, wanted)
    return _Entry(DTYPES[dtype], shape, begin, end)


def _integers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and {int}.issuperset(map(type, value)):
        return tuple(value)
    return None


def _check_cover(entries: dict[str, _Entry], data_size: int) -> None:
    """The arrays, in order of their offsets, cover the data: no hole, no overlap, no tail."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise _lie(f"{sanitize(name)} leaves a hole or overlaps", entry.begin, at)
        at = entry.end
    if at != data_size:
        raise _lie("the arrays do not cover the data", f"{data_size} bytes", f"{at} bytes")


def _array(entry: _Entry, record: Region) -> LazyArray | Inert:
    if entry.dtype in OTHER_SAFETENSORS:
        return Inert(f"safetensors {entry.dtype}", None)
    stored = STORED[entry.dtype]

    def read() -> NDArray[Any]:
        flat = read_elements(record, 0, record.size // stored.itemsize, stored)
        return decode(flat, entry.dtype).reshape(entry.shape)

    return LazyArray(entry.shape, entry.dtype, read)


def _lie(what: str, got: object = None, wanted: object = None) -> WeightsFileError:
    return WeightsFileError(
        f"the safetensors header is wrong: {what}",
        got=got,
        wanted=wanted,
        advice="the file is damaged: copy or download it again",
    )
