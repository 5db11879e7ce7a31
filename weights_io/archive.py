"""Opening a weights file of any container."""

from __future__ import annotations

import os
from typing import BinaryIO

from weights_io.detect import detect
from weights_io.errors import WeightsFileError
from weights_io.limits import DEFAULT_LIMITS, Limits
from weights_io.readers.contents import Contents
from weights_io.readers.npz import SUFFIX, read_npz
from weights_io.readers.plain_pickle import read_plain_pickle
from weights_io.readers.safetensors import read_safetensors
from weights_io.readers.torch_legacy import read_torch_legacy
from weights_io.readers.torch_zip import PICKLE, read_torch_zip
from weights_io.source import Source, open_source
from weights_io.zips.read import read_zip


class Archive:
    """An open weights file; a context manager.

    Attributes
    ----------
    container : str
        "torch-zip", "torch-legacy", "pickle", "safetensors" or "npz".
    root : object
        What the file holds: dicts, lists, tuples, sets of strings, numbers, text, `Inert`
        stand-ins, and `LazyArray` for each array. A flat dict for npz and safetensors.
    metadata : dict of str to str
        What the writer says beside the arrays: ``__metadata__``, or a torch zip's record of ours.
    """

    def __init__(self, source: Source, contents: Contents) -> None:
        self._source = source
        self.container, self.root, self.metadata = contents

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

    Parameters
    ----------
    file : path or seekable binary file object
        The container is told by content, never by name. A file object is closed with the archive.
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
    source = open_source(file)
    try:
        limits.enforce("file_bytes", source.size, f"{source.name}: the file is too large")
        return Archive(source, _read(source, limits))
    except BaseException:
        source.close()
        raise


def _read(source: Source, limits: Limits) -> Contents:
    kind = detect(source)
    if kind == "safetensors":
        return read_safetensors(source, limits)
    if kind == "torch-legacy":
        return read_torch_legacy(source, limits)
    if kind == "pickle":
        return read_plain_pickle(source, limits)
    members = read_zip(source, limits)
    if members and all(name.endswith(SUFFIX) for name in members):
        return read_npz(source, members, limits)
    if any(name.endswith("/" + PICKLE) for name in members):
        return read_torch_zip(source, members, limits)
    raise WeightsFileError(
        f"{source.name}: a zip archive that holds no weights",
        wanted="a torch checkpoint or .npy arrays",
    )
