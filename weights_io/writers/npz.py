"""Writing npz: uncompressed, every array aligned to 64 bytes in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from weights_io.dtypes import TO_NUMPY_CODE
from weights_io.errors import WeightsFileError
from weights_io.readers.npz import MAGIC, METADATA, SUFFIX
from weights_io.text import sanitize
from weights_io.writers.specs import ArraySpec
from weights_io.zips.read import is_safe_name
from weights_io.zips.write import ZipWriter

_ALIGNMENT = 64
_PREFIX_BYTES = len(MAGIC) + 4  # magic, version, header length


def write_npz(
    file: BinaryIO,
    specs: Sequence[ArraySpec],
    blocks: Iterator[memoryview],
    metadata: Mapping[str, Any],
) -> None:
    """Write one .npy member per array, and the metadata as a JSON string in a 0-d array.

    Its values may be whatever JSON can hold.
    """
    for spec in specs:
        _check(spec)
    archive = ZipWriter(file, _ALIGNMENT)
    if metadata:
        text = json.dumps(dict(metadata), sort_keys=True)
        header = _npy_header(f"<U{len(text)}", ())
        archive.add(METADATA + SUFFIX, header, memoryview(text.encode("utf-32-le")))
    for spec, block in zip(specs, blocks, strict=True):
        code = TO_NUMPY_CODE[spec.dtype]
        header = _npy_header(f"{'|' if code.endswith('1') else '<'}{code}", spec.shape)
        archive.add(spec.name + SUFFIX, header, block)
    archive.finish()


def _check(spec: ArraySpec) -> None:
    shown = sanitize(spec.name)
    if spec.dtype not in TO_NUMPY_CODE:
        raise WeightsFileError(
            f"{shown} cannot be written as npz: NumPy has no {spec.dtype}",
            advice="write float32, or choose another container",
        )
    if not is_safe_name(spec.name + SUFFIX):
        raise WeightsFileError("an npz member cannot have this name", got=shown)


def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(_PREFIX_BYTES + len(text) + 1) % _ALIGNMENT
    literal = (text + " " * padding + "\n").encode("ascii")
    return MAGIC + b"\x01\x00" + len(literal).to_bytes(2, "little") + literal
