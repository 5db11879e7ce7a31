"""Writing torch's two containers; both load with ``weights_only=True``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from weights_io.errors import WeightsFileError
from weights_io.pickles import emit
from weights_io.readers.torch_legacy import MAGIC, VERSION
from weights_io.readers.torch_zip import METADATA
from weights_io.writers.specs import ArraySpec
from weights_io.zips.write import ZipWriter

_FOLDER = "archive/"
_ALIGNMENT = 64  # what torch 2.x uses, so that it can map a file into memory
_SYSTEM = {
    "protocol_version": VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def write_torch_zip(
    file: BinaryIO,
    specs: Sequence[ArraySpec],
    blocks: Iterator[memoryview],
    metadata: Mapping[str, str],
) -> None:
    """Write the container of torch 1.6 and later, in the layout of torch 2.x.

    The metadata is a record of its own, which torch passes over as it does its other dotted ones.
    """
    archive = ZipWriter(file, _ALIGNMENT)
    archive.add(_FOLDER + "data.pkl", emit.state_dict(specs))
    archive.add(_FOLDER + ".format_version", b"1")
    archive.add(_FOLDER + ".storage_alignment", str(_ALIGNMENT).encode())
    archive.add(_FOLDER + "byteorder", b"little")
    if metadata:
        archive.add(_FOLDER + METADATA, json.dumps(dict(metadata), sort_keys=True).encode())
    for key, block in enumerate(blocks):
        archive.add(f"{_FOLDER}data/{key}", block)
    archive.add(_FOLDER + "version", b"3\n")
    archive.finish()


def write_torch_legacy(
    file: BinaryIO,
    specs: Sequence[ArraySpec],
    blocks: Iterator[memoryview],
    metadata: Mapping[str, str],
) -> None:
    """Write the stream of torch before 1.6."""
    if metadata:
        raise WeightsFileError(
            "torch's older container has no place for metadata",
            got=f"{len(metadata)} entries",
            advice="leave it out, or write another container",
        )
    for value in (MAGIC, VERSION, _SYSTEM):
        file.write(emit.plain(value))
    file.write(emit.state_dict(specs, legacy=True))
    file.write(emit.plain([str(key) for key in range(len(specs))]))
    for spec, block in zip(specs, blocks, strict=True):
        file.write(spec.count.to_bytes(8, "little"))
        file.write(block)
