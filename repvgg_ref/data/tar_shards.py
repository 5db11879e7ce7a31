"""Tar files in WebDataset's layout: ``KEY.jpg`` beside ``KEY.cls`` (or ``KEY.json``).

Every file is looked through once for where each picture lies; then any picture is one read at an
offset. Nothing is ever unpacked, so the members' names are labels and no paths.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from repvgg_ref.data.decode import Decode
from repvgg_ref.data.folder import EXTENSIONS
from repvgg_ref.data.places import read_at
from repvgg_ref.data.source import IMAGENET_GREY, IMAGENET_RGB, DataError
from weights_io import open_regular, sanitize

if TYPE_CHECKING:
    from PIL.Image import Image

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 100_000
_LONGEST_LABEL = 4096  # bytes of a .cls or .json file
_LABEL_FIELDS = ("label", "cls")
_TARFILE_RAISES = (ValueError, OverflowError, RecursionError, MemoryError, OSError)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class _Sample(NamedTuple):
    """Where a picture lies in its tar file, and its label."""

    name: str
    offset: int
    size: int
    label: int


class TarSource:
    """The pictures of some tar files, in the files' order.

    Raises
    ------
    DataError
        If a file is no plain tar or cut off, or a picture has no label or one that is no class.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        decode: Decode,
        channels: int = 3,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.channels, self._decode = channels, decode
        self.standardise = IMAGENET_RGB if channels == 3 else IMAGENET_GREY
        self.side: int | None = None
        self._files = [str(path) for path in files]
        samples = [(number, s) for number, path in enumerate(files) for s in _samples(path)]
        if not samples:
            raise DataError(
                "no pictures in the tar files",
                got=f"{len(files)} files",
                wanted="members KEY.jpg with KEY.cls or KEY.json",
            )
        self._file = np.array([number for number, _ in samples], np.int32)
        self._offset = np.array([sample.offset for _, sample in samples], np.int64)
        self._size = np.array([sample.size for _, sample in samples], np.int64)
        self._names = [sample.name for _, sample in samples]
        self.labels = np.array([sample.label for _, sample in samples], np.int64)
        self.classes = classes or tuple(map(str, range(int(self.labels.max()) + 1)))
        self._require_classes()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """``shard.tar:member``, safe to print."""
        return sanitize(self.key(index))

    def key(self, index: int) -> str:
        """``shard.tar:member``."""
        return f"{Path(self._files[self._file[index]]).name}:{self._names[index]}"

    def stored_size(self, index: int) -> int:
        """The member's."""
        return int(self._size[index])

    def stored(self, index: int) -> bytes:
        """The member."""
        path = self._files[self._file[index]]
        return read_at(path, int(self._offset[index]), int(self._size[index]))

    def picture(self, index: int) -> Image:
        """Read and decode one member."""
        return self._decode(self.name(index), self.stored(index))

    def _require_classes(self) -> None:
        wrong = np.flatnonzero(self.labels >= len(self.classes))
        if wrong.size:
            raise DataError(
                f"{self.name(int(wrong[0]))}: the label is out of range",
                got=self.labels[wrong[0]],
                wanted=f"0 ... {len(self.classes) - 1}",
            )


def tar_files(pattern: str) -> list[Path]:
    """The files of a name with ranges in braces: ``train-{000..146}.tar``.

    Raises
    ------
    DataError
        If a range runs backwards, there are too many, or a file is missing.
    """
    parts = _RANGE.split(pattern)
    texts, starts, ends = parts[::3], parts[1::3], parts[2::3]
    ranges = [range(int(start), int(end) + 1) for start, end in zip(starts, ends, strict=True)]
    count = int(np.prod([len(r) for r in ranges], dtype=object))
    if not 0 < count <= _MOST_FILES:
        raise DataError(
            f"{sanitize(pattern)}: the ranges name no sensible number of files", got=count
        )
    files = []
    for numbers in product(*ranges):
        filled = [f"{n:0{len(start)}}" for n, start in zip(numbers, starts, strict=True)]
        pieces = [text + number for text, number in zip(texts, [*filled, ""], strict=True)]
        files.append(Path("".join(pieces)))
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{sanitize(missing[0])}: no such file",
            got=f"{len(missing)} of {len(files)} files missing",
        )
    return files


@dataclass
class _Parts:
    """The members of one key: a picture, and a file that says its label."""

    picture: tarfile.TarInfo | None = None
    label: tarfile.TarInfo | None = None


def _samples(path: Path) -> Iterator[_Sample]:
    keys: dict[str, _Parts] = {}
    for member in _members(path):
        # As WebDataset has it: the key ends at the first dot of the name.
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        parts = keys.setdefault(f"{folder}/{stem}", _Parts())
        if f".{suffix}" in EXTENSIONS:
            if parts.picture is not None:
                raise _damaged(path, f"two pictures called {sanitize(member.name)}")
            parts.picture = member
        elif suffix == "cls" or (suffix == "json" and parts.label is None):
            parts.label = member
    for parts in keys.values():
        if parts.picture is not None:
            yield _Sample(
                parts.picture.name,
                parts.picture.offset_data,
                parts.picture.size,
                _label(path, parts.picture.name, parts.label),
            )


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive, each of which lies wholly within it."""
    _require_plain(path)
    length, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every one
                if member.size < 0 or member.offset_data < end:
                    raise _damaged(path, f"{sanitize(member.name)} runs backwards")
                end = member.offset_data + (member.size if member.isreg() else 0)
                if member.issparse():
                    raise _damaged(path, f"{sanitize(member.name)} is a sparse file")
                if end > length:
                    raise _damaged(path, f"{sanitize(member.name)} is cut off")
                if member.isreg():
                    yield member
            # tarfile takes any damage after the first member for the end.
            if read_at(str(path), archive.offset, tarfile.BLOCKSIZE).strip(b"\0"):
                raise _damaged(path, f"no member at byte {archive.offset}")
    except (tarfile.TarError, *_TARFILE_RAISES) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _require_plain(path: Path) -> None:
    with open_regular(path) as file:
        if file.read(4).startswith(_COMPRESSED):
            raise DataError(
                f"{sanitize(path)}: a compressed tar has no random access",
                advice="decompress it first",
            )


def _label(path: Path, picture: str, member: tarfile.TarInfo | None) -> int:
    label: object = None
    if member is not None and member.size <= _LONGEST_LABEL:
        text = read_at(str(path), member.offset_data, member.size)
        try:
            label = int(text) if member.name.lower().endswith(".cls") else json.loads(text)
        except (ValueError, RecursionError):
            label = None
        if isinstance(label, dict):
            label = next((label[field] for field in _LABEL_FIELDS if field in label), None)
    if type(label) is not int or not 0 <= label < 2**31:
        raise _damaged(
            path,
            f"{sanitize(picture)} without a label",
            wanted="a whole number in KEY.cls, or in KEY.json under 'label'",
        )
    return label


def _damaged(path: Path, got: str, wanted: str | None = None) -> DataError:
    return DataError(f"{sanitize(path)}: not a whole tar of pictures", got=got, wanted=wanted)
