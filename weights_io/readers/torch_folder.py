"""A torch zip that has been unpacked: a folder of data.pkl and one file per storage."""

from __future__ import annotations

import os
from pathlib import Path

from weights_io.budget import MEMBER_WORK, Budget
from weights_io.errors import WeightsFileError
from weights_io.limits import Limits
from weights_io.readers.contents import Contents
from weights_io.readers.torch_zip import PICKLE, read_torch_archive
from weights_io.source import Source, open_source
from weights_io.text import sanitize

_STORAGES = "data"


class FolderFile:
    """A file of the folder, opened for each reading: there are more than may be open at once."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name = path, name
        self.size = path.stat().st_size

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `start` on."""
        with self._open() as source:
            source.read_into(start, view)

    def cost(self, length: int) -> int:
        """The bytes that reading `length` of them takes."""
        return length

    def read_all(self) -> bytes:
        """Return the whole file; the caller has bounded `size`."""
        with self._open() as source:
            return source.read(0, self.size)

    def read(self, limits: Limits) -> bytes:
        """Return the whole file, which may be no larger than a header."""
        limits.enforce("header_bytes", self.size, f"{sanitize(self.name)} is too large")
        return self.read_all()

    def _open(self) -> Source:
        return open_source(self._path, links=False)  # what was no link may have become one


def torch_folder(path: Path) -> Path | None:
    """The folder that holds data.pkl: `path`, or the only folder in it."""
    if (path / PICKLE).is_file():
        return path
    inside = [entry for entry in _listed(path) if not entry.name.startswith((".", "__MACOSX"))]
    if len(inside) == 1 and inside[0].is_dir(follow_symlinks=False):
        within = Path(inside[0].path)
        return within if (within / PICKLE).is_file() else None
    return None


def read_torch_folder(folder: Path, limits: Limits) -> Contents:
    """Read the tree of an unpacked torch zip; its storages stay in their files."""
    names = [(entry.name, entry) for entry in _listed(folder)]
    if any(name == _STORAGES and entry.is_dir(follow_symlinks=False) for name, entry in names):
        names += [(f"{_STORAGES}/{entry.name}", entry) for entry in _listed(folder / _STORAGES)]
    files = {
        name: FolderFile(Path(entry.path), name)
        for name, entry in names
        if entry.is_file(follow_symlinks=False)  # a link could lead anywhere
    }
    if PICKLE not in files:
        raise WeightsFileError(f"{sanitize(folder)}: {PICKLE} is no file of its own")
    size = sum(file.size for file in files.values())
    limits.enforce("file_bytes", size, f"{sanitize(folder)}: the folder is too large")
    budget = Budget(limits, size)
    budget.charge("work", MEMBER_WORK * len(names), f"{sanitize(folder)} holds too many files")
    return read_torch_archive(files, "", budget)._replace(container="torch-folder")


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise WeightsFileError(
            f"{sanitize(folder)}: cannot be listed", got=error.strerror
        ) from None
