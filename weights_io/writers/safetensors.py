"""Writing safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from weights_io.readers.safetensors import DTYPES
from weights_io.writers.specs import ArraySpec

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    file: BinaryIO,
    specs: Sequence[ArraySpec],
    blocks: Iterator[memoryview],
    metadata: Mapping[str, str],
) -> None:
    """Write the header, padded to a multiple of eight bytes, then the arrays back to back."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for block in blocks:
        file.write(block)
