"""Opening a weights file of any container."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from weights_io.budget import Budget
from weights_io.collector import seldom_collected
from weights_io.detect import Kind, detect
from weights_io.errors import WeightsFileError
from weights_io.folders import as_folder, only_file
from weights_io.limits import DEFAULT_LIMITS, Limits
from weights_io.readers.contents import Contents
from weights_io.readers.npz import SUFFIX, read_npz
from weights_io.readers.plain_pickle import read_plain_pickle
from weights_io.readers.safetensors import read_safetensors
from weights_io.readers.shards import Shards, open_shards, read_index, read_shards
from weights_io.readers.torch_folder import read_torch_folder, torch_folder
from weights_io.readers.torch_legacy import read_torch_legacy
from weights_io.readers.torch_zip import PICKLE, read_torch_zip
from weights_io.source import Source, open_source
from weights_io.zips.foreign import unreadable_zip, without_leftovers
from weights_io.zips.read import read_zip


class Archive:
    """An open weights file; a context manager.

    Attributes
    ----------
    container : str
        "torch-zip", "torch-legacy", "torch-folder" (a torch zip unpacked), "pickle",
        "safetensors" or "npz"; with "-shards" behind it for several files and their index.
    root : object
        What the file holds: dicts, lists, tuples, sets of strings, numbers, text, `Inert`
        stand-ins, `LazyArray` for each array, and `PickledModule` for each torch module. A flat
        dict for npz and safetensors.
    metadata : dict of str to str
        What the writer says beside the arrays: ``__metadata__``, or a torch zip's record of ours.
    notes : tuple of str
        What whoever trusts the arrays should know: that the file has no checksums.
    """

    def __init__(self, source: Source | Shards, contents: Contents) -> None:
        self._source = source
        self.container, self.root, self.metadata, self.notes = contents

    def close(self) -> None:
        """Close the file; arrays not yet read can no longer be."""
        self._source.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_weights(
    file: str | os.PathLike[str] | BinaryIO, limits: Limits = DEFAULT_LIMITS
) -> Archive:
    """Open a weights file without trusting it; nothing in it is ever run.

    While its structure is read, Python's collector of cyclic garbage comes less often, in all
    threads.

    Parameters
    ----------
    file : path or seekable binary file object
        The container is told by content, never by name. A file object is closed with the archive.
        A path may also be that of an index of shards, of a torch zip unpacked into a folder, or of
        a folder with one of these or one weights file in it.
    limits : Limits, optional
        What the file may ask for at most.

    Returns
    -------
    Archive
        Its arrays are read, and their checksums verified, when they are asked for.

    Raises
    ------
    RefusedGlobalError
        When a pickle names anything that weights do not need.
    LimitError
        When the file asks for more than `limits`.
    WeightsFileError
        When the file cannot be opened, is broken, or is of a kind that is not read.
    """
    if isinstance(file, str | os.PathLike) and (folder := as_folder(file)) is not None:
        if (torch := torch_folder(folder)) is not None:
            with seldom_collected():
                return Archive(Shards(), read_torch_folder(torch, limits))
        file = only_file(folder)
    source = open_source(file)
    try:
        budget = _budget(source, limits)
        kind = detect(source)
        if kind == "index":
            return _open_index(source, file, budget)
        return Archive(source, _read(source, kind, budget))
    except BaseException:
        source.close()
        raise


def _open_index(source: Source, file: object, budget: Budget) -> Archive:
    """Open the files that an index names; they must lie beside it."""
    table = read_index(source, budget)
    source.close()
    if not isinstance(file, str | os.PathLike):
        raise WeightsFileError(f"{source.name}: an index can be opened by its path only")
    shards, limits = Shards(), budget.limits
    try:
        files = open_shards(Path(file).parent, table, shards)
        for shard in shards.sources:
            limits.enforce("file_bytes", shard.size, f"{shard.name}: the file is too large")
        # What is free is so once: a thousand small files are no thousand times as free.
        whole = replace(limits, total_bytes=limits.total_bytes * len(files))
        shared = Budget(whole, sum(shard.size for shard in shards.sources))
        return Archive(
            shards, read_shards(files, table, lambda shard: _read_shard(shard, shared), shards)
        )
    except BaseException:
        shards.close()
        raise


def _read_shard(source: Source, budget: Budget) -> Contents:
    kind = detect(source)
    if kind == "index":
        raise WeightsFileError(f"{source.name}: an index that names another index")
    return _read(source, kind, budget)


def _budget(source: Source, limits: Limits) -> Budget:
    limits.enforce("file_bytes", source.size, f"{source.name}: the file is too large")
    return Budget(limits, source.size)


def _read(source: Source, kind: Kind, budget: Budget) -> Contents:
    with seldom_collected():
        return _read_as(source, kind, budget)


def _read_as(source: Source, kind: Kind, budget: Budget) -> Contents:
    if kind == "safetensors":
        return read_safetensors(source, budget)
    if kind == "torch-legacy":
        return read_torch_legacy(source, budget)
    if kind == "pickle":
        return read_plain_pickle(source, budget)
    members = without_leftovers(read_zip(source, budget))
    if members and all(name.endswith(SUFFIX) for name in members):
        return read_npz(members, budget)
    if PICKLE in members or any(name.endswith("/" + PICKLE) for name in members):
        return read_torch_zip(members, budget)
    raise unreadable_zip(source.name, list(members))
