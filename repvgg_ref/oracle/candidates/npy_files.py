"""Arrays in files, read without trust: .npy and raw bytes. No pickle, no size that is not there."""

from __future__ import annotations

import json
import os
import warnings
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import IrregularFileError, open_regular, sanitize

MOST_BYTES = 4 << 30
_HEADER_BYTES = 4096
# bfloat16 is read as what NumPy has of the same width, and widened.
_DTYPES = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
_SHORT = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
_SHORT |= {"float": "float32", "fp64": "float64", "double": "float64"}
_SHORT |= {"f2": "float16", "f4": "float32", "f8": "float64"}
_ORDERS = {"little": "<", "big": ">", "<": "<", ">": ">"}


def read_npy(path: Path, shape: tuple[int, ...] | None = None) -> Array:
    """The array in a .npy file.

    Raises
    ------
    CandidateFailure
        If it is no plain .npy file, is shorter or longer than its header says, or is not of the
        `shape` that somebody said it has.
    """
    with opened(path) as file:
        return read_npy_stream(file, os.fstat(file.fileno()).st_size, path.name, shape)


def read_npy_stream(
    file: BinaryIO, size: int, name: str, said: tuple[int, ...] | None = None
) -> Array:
    """The array in `size` bytes of .npy format; of the shape that is `said`, if one is."""
    shown = sanitize(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = _header(file)
    except Exception as error:  # NumPy lets its tokenizer's and parser's errors through
        lines = str(error).splitlines() or [type(error).__name__]
        raise CandidateFailure(f"{shown}: no readable .npy file", got=sanitize(lines[0])) from None
    if dtype.hasobject or dtype.kind not in "fiu":
        raise CandidateFailure(
            f"{shown}: holds no numbers",
            got="objects: they could be anything, code included" if dtype.hasobject else dtype,
            wanted="an array of floating-point numbers",
        )
    if said is not None and shape != said:
        raise CandidateFailure(
            f"{shown}: the manifest and the file differ",
            got=f"shape {shape} in the file",
            wanted=f"shape {said} as the manifest says",
        )
    flat = _exactly(file, shape, dtype, size - file.tell(), shown)
    return flat.reshape(shape, order="F" if fortran else "C")


def read_raw(
    path: Path, shape: tuple[int, ...], dtype: str, endianness: str, offset: int
) -> tuple[Array, str]:
    """Numbers without a header, as a manifest describes them: the array and its dtype's name."""
    shown = sanitize(path.name)
    kind = _SHORT.get(dtype.lower(), dtype.lower())
    if kind not in _DTYPES or endianness not in _ORDERS or offset < 0:
        raise CandidateFailure(
            f"{shown}: the manifest describes it in words that are not known",
            got=sanitize(f"dtype {dtype}, endianness {endianness}, offset {offset}"),
            wanted=f"dtype {', '.join(_DTYPES)}; endianness little or big; offset at least 0",
        )
    stored = np.dtype(_ORDERS[endianness] + _DTYPES[kind])
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(min(offset, size))
        flat = _exactly(file, shape, stored, size - offset, shown)
    if kind == "bfloat16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape), kind


def require_regular(path: Path) -> None:
    """Raise unless `path` is a file that can be opened and read to its end."""
    opened(path).close()


def read_bytes(path: Path, most: int) -> bytes:
    """A file of at most `most` bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise CandidateFailure(
            f"{sanitize(path.name)}: is too large",
            got=f"{max(size, len(data))} bytes",
            wanted=f"at most {most} bytes",
        )
    return data


def read_text(path: Path, most: int = 8 << 20) -> str:
    """A small text file."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeError as error:
        raise CandidateFailure(
            f"{sanitize(path.name)}: cannot be read as text", got=type(error).__name__
        ) from None


def read_json(text: str, where: str) -> Any:
    """JSON, or a `CandidateFailure`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CandidateFailure(
            f"{where}: is no JSON", got=sanitize(str(error) or type(error).__name__)
        ) from None


def opened(path: Path) -> BinaryIO:
    """A regular file to read; `CandidateFailure` if it is none, or cannot be opened."""
    try:
        return BufferedReader(open_regular(path))
    except IrregularFileError as error:
        raise CandidateFailure(
            f"{sanitize(path.name)}: is no regular file", got=error.strerror
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise CandidateFailure(f"{sanitize(path.name)}: cannot be opened", got=reason) from None


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = read(file, max_header_size=_HEADER_BYTES)
    return shape, fortran, dtype


def _exactly(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], available: int, shown: str
) -> Array:
    """The elements of `shape`, after their bytes were found to be there."""
    wanted = prod(shape) * dtype.itemsize
    if any(extent < 0 for extent in shape) or wanted != available or wanted > MOST_BYTES:
        raise CandidateFailure(
            f"{shown}: its size is not that of its shape",
            got=f"{max(available, 0)} bytes for shape {tuple(shape)} of {dtype.name}",
            wanted=f"exactly {wanted} bytes, at most {MOST_BYTES}",
            advice="the file is cut short, or described wrongly",
        )
    data = np.frombuffer(file.read(wanted), dtype)
    if data.nbytes != wanted:
        raise CandidateFailure(f"{shown}: ends too early", got=data.nbytes, wanted=wanted)
    return data.astype(dtype.newbyteorder("="), copy=True)
