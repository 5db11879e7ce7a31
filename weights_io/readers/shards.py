"""Weights in several files: an index names the file of every array.

The index is JSON, ``{"weight_map": {array: file}}``, beside its files; what else it says (sizes)
is for downloaders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weights_io.budget import Budget
from weights_io.errors import WeightsFileError
from weights_io.readers.contents import Contents
from weights_io.readers.metadata import charge_json
from weights_io.source import Source, open_source
from weights_io.text import sanitize

SUFFIX = ".index.json"
_MOST_FILES = 1000
_MAP = "weight_map"

Read = Callable[[Source], Contents]


class Shards:
    """The open files of one set of weights, closed together."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def close(self) -> None:
        """Close all files."""
        for source in self.sources:
            source.close()


def read_index(source: Source, budget: Budget) -> dict[str, str]:
    """Return the file of every array, as a plain name beside the index."""
    budget.limits.enforce("header_bytes", source.size, f"{source.name}: the index is too large")
    text = source.read(0, source.size)
    charge_json(text, f"{source.name}: the index", budget)
    try:
        value: Any = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    table = value.get(_MAP) if isinstance(value, dict) else None
    if not isinstance(table, dict) or not table:
        raise WeightsFileError(
            f"{source.name}: this is JSON, no weights file",
            wanted=f"an index of weights in several files, with {_MAP}",
            advice="give the weights file",
        )
    for name, file in table.items():
        if type(file) is not str or not _is_plain(file):
            raise WeightsFileError(
                f"{source.name}: the index names no file beside it for {sanitize(name)}",
                got=sanitize(file) if type(file) is str else type(file).__name__,
                wanted="a file's name without folders",
            )
    return table


def _is_plain(file: str) -> bool:
    return not ({"/", "\\", "\0", ":"} & set(file)) and file not in ("", ".", "..")


def open_shards(folder: Path, table: dict[str, str], shards: Shards) -> list[str]:
    """Open every file of an index, which `shards` takes for closing; return their names."""
    files = sorted(set(table.values()))
    if len(files) > _MOST_FILES:
        raise WeightsFileError("the index names too many files", got=len(files), wanted=_MOST_FILES)
    for file in files:
        shards.sources.append(open_source(folder / file))
    return files


def read_shards(files: list[str], table: dict[str, str], read: Read, shards: Shards) -> Contents:
    """Read every shard, and gather all arrays under one root."""
    root: dict[str, object] = {}
    metadata: dict[str, str] = {}
    container, notes = "", dict[str, None]()
    for file, source in zip(files, shards.sources, strict=True):
        contents = read(source)
        container, metadata = contents.container, metadata | contents.metadata
        notes |= dict.fromkeys(contents.notes)
        if not isinstance(contents.root, dict):
            raise WeightsFileError(f"{sanitize(file)} holds no mapping of named arrays")
        for name, array in contents.root.items():
            if table.get(name, file) == file:  # of two files with one array the index's is meant
                root[name] = array
    missing = [name for name in table if name not in root]
    if missing:
        raise WeightsFileError(
            "the shards lack arrays that their index names",
            got=f"{len(missing)} missing, first {sanitize(missing[0])}",
            advice=f"download {sanitize(table[missing[0]])} and the index again, from one place",
        )
    return Contents(f"{container}-shards", root, metadata, tuple(notes))
