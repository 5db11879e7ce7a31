"""The npz container: a zip of .npy files, one plain array each."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weights_io.budget import Budget
from weights_io.dtypes import FROM_NUMPY_CODE, STORED, decode
from weights_io.errors import WeightsFileError
from weights_io.lazy import LazyArray
from weights_io.limits import Limits
from weights_io.pickles.inert import Inert
from weights_io.readers.contents import Contents
from weights_io.readers.metadata import as_text_metadata, parse_json
from weights_io.strided import read_elements
from weights_io.text import sanitize
from weights_io.zips.member import Member

SUFFIX = ".npy"
METADATA = "__metadata__"
MAGIC = b"\x93NUMPY"
_MOST_DIGITS = 20  # enough for 64 bits

# The header is a Python literal, its keys sorted. It is matched, never evaluated.
_LITERAL = re.compile(
    r"""\{\s*(['"])descr\1\s*:\s*(['"])(?P<order>[<>|=]?)(?P<code>[A-Za-z]\d{0,9}|[Mm]8\[\d{0,9}[A-Za-z]{1,2}\])\2\s*,"""
    r"""\s*(['"])fortran_order\5\s*:\s*(?P<fortran>True|False)\s*,"""
    r"""\s*(['"])shape\7\s*:\s*\((?P<shape>[\d\s,]*)\)\s*,?\s*\}"""
)


# What weights never come in, stepped over: unsigned, complex and wide numbers, dates, text.
_OTHER = re.compile(
    r"(?P<text>[SUV])(?P<units>\d{1,6})|(?:u(?=[248])|c(?=8|16|32)|f(?=12|16))(?P<number>\d{1,2})"
    r"|[Mm]8(?:\[.*\])?"
)


class _Header(NamedTuple):
    order: str  # "<", ">", "|", "=" or nothing
    code: str  # f4, i8, U12, ...
    shape: tuple[int, ...]
    fortran: bool
    size: int  # bytes before the data


def read_npz(members: dict[str, Member], budget: Budget) -> Contents:
    """Read the headers of the .npy members; the arrays stay in the file."""
    root: dict[str, object] = {}
    metadata: dict[str, str] = {}
    for member_name, member in members.items():
        name = member_name.removesuffix(SUFFIX)
        header = _parse_header(member, budget.limits)
        if name == METADATA:
            metadata = _read_metadata(member, header, budget)
        else:
            root[name] = _array(name, member, header, budget)
    return Contents("npz", root, metadata)


def _parse_header(member: Member, limits: Limits) -> _Header:
    head = member.head(limits.npy_header_bytes)
    shown = sanitize(member.name)
    width = {1: 2, 2: 4, 3: 4}.get(head[6] if len(head) > 7 else 0)
    if not head.startswith(MAGIC) or width is None:
        raise WeightsFileError(f"{shown} is no .npy file of version 1 to 3")
    start = len(MAGIC) + 2 + width
    size = start + int.from_bytes(head[start - width : start], "little")
    limits.enforce("npy_header_bytes", size, f"{shown} has too large a header")
    if size > len(head):
        raise WeightsFileError(f"{shown} ends inside its header", got=len(head), wanted=size)
    return _parse_literal(head[start:size].decode("latin-1"), size, shown)


def _parse_literal(text: str, size: int, shown: str) -> _Header:
    match = _LITERAL.fullmatch(text.strip())
    if not match:
        raise WeightsFileError(
            f"{shown} is no plain array of numbers", got=sanitize(text), wanted="a plain header"
        )
    sizes = [part.strip() for part in match["shape"].split(",") if part.strip()]
    if not all(part.isdigit() and len(part) <= _MOST_DIGITS for part in sizes):
        raise WeightsFileError(f"{shown} has a damaged shape", got=sanitize(match["shape"]))
    shape = tuple(map(int, sizes))
    return _Header(match["order"], match["code"], shape, match["fortran"] == "True", size)


def _array(name: str, member: Member, header: _Header, budget: Budget) -> LazyArray | Inert:
    shown = sanitize(name)
    if header.code.startswith("O"):
        raise WeightsFileError(
            f"{shown} is an object array: its elements could be anything, code included",
            advice="save it again as an array of numbers",
        )
    dtype = FROM_NUMPY_CODE.get(header.code)
    if dtype is None and (itemsize := _other_bytes(header.code)) is not None:
        _check_size(member, header, budget.admit(header.shape, 0, shown) * itemsize)
        return Inert(f"numpy.ndarray of {header.code}", None)
    if dtype is None:
        raise WeightsFileError(
            f"{shown} has a dtype that is not read here",
            got=header.code,
            wanted=", ".join(FROM_NUMPY_CODE),
        )
    stored = STORED[dtype].newbyteorder(">" if header.order == ">" else "<")
    count = budget.admit(header.shape, stored.itemsize, shown)
    _check_size(member, header, count * stored.itemsize)
    if header.fortran:
        budget.charge_copy(count * stored.itemsize, shown)

    def read() -> NDArray[Any]:
        flat = decode(read_elements(member, header.size, count, stored), dtype)
        values = flat.reshape(header.shape, order="F" if header.fortran else "C")
        return np.ascontiguousarray(values).reshape(header.shape)

    return LazyArray(header.shape, dtype, read)


def _other_bytes(code: str) -> int | None:
    """The bytes of an element that is stepped over; None if there are no such elements."""
    match = _OTHER.fullmatch(code)
    if match is None:
        return None
    size = match["number"] or match["units"] or 8
    return int(size) * (4 if match["text"] == "U" else 1)


def _check_size(member: Member, header: _Header, data_bytes: int) -> None:
    if member.size != header.size + data_bytes:
        raise WeightsFileError(
            f"{sanitize(member.name)} has the wrong size",
            got=f"{member.size} bytes",
            wanted=f"{header.size + data_bytes} bytes",
            advice="the file is damaged: copy or download it again",
        )


def _read_metadata(member: Member, header: _Header, budget: Budget) -> dict[str, str]:
    """Read the JSON string that is kept as a 0-d array of UTF-32 text."""
    if not header.code.startswith("U") or header.order == ">" or header.shape != ():
        raise WeightsFileError("the npz's __metadata__ is no text", got=header.code)
    _check_size(member, header, 4 * int(header.code[1:] or 0))
    try:
        text = member.read(budget.limits)[header.size :].decode("utf-32-le").rstrip("\0").encode()
    except UnicodeError:
        raise WeightsFileError("the npz's __metadata__ is no text") from None
    return as_text_metadata(parse_json(text, "the npz's __metadata__", budget))
