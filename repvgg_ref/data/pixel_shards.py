"""Pictures resized once and kept as bytes: no decoding while training.

A folder holds ``manifest.json``, ``labels.npy`` and parts ``pixels-00000.u8``: nothing but pixels,
(count, size, size, channels) uint8 one after the other. The manifest is written last, so a folder
with one is whole. See `write_pixels` for what the pictures are.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.places import read_at
from repvgg_ref.data.source import DataError, Standardise, checked_labels
from weights_io import read_regular, sanitize

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST, LABELS = "manifest.json", "labels.npy"
FORMAT, VERSION = "repvgg-ref pixels", 1
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "version": int,
    "size": int,
    "channels": int,
    "interpolation": str,
    "classes": list,
    "standardise": list,
    "count": int,
    "labels_sha256": str,
    "parts": list,
    "skipped": list,
}


class PixelSource:
    """The pictures of such a folder.

    Raises
    ------
    DataError
        If the folder is unfinished, of another version, or does not fit its manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.size, self.channels = self.manifest["size"], self.manifest["channels"]
        self.side: int | None = self.size
        self.classes = tuple(self.manifest["classes"])
        scale, mean, std = self.manifest["standardise"]
        self.standardise = Standardise(scale, tuple(mean), tuple(std))
        self._bytes: int = self.size * self.size * self.channels
        self.labels = self._labels()
        self._parts = [str(folder / part["file"]) for part in self.manifest["parts"]]
        self._starts = np.cumsum([0, *(part["count"] for part in self.manifest["parts"])])
        self._require_parts()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        """``folder/part[place]``."""
        part, place = self._place(index)
        return sanitize(f"{self._parts[part]}[{place}]")

    def key(self, index: int) -> str:
        """The index."""
        return str(index)

    def stored_size(self, index: int) -> int:
        """Of the pixels."""
        return self._bytes

    def stored(self, index: int) -> bytes:
        """The pixels."""
        part, place = self._place(index)
        return read_at(self._parts[part], place * self._bytes, self._bytes)

    def picture(self, index: int) -> Image:
        """Read the pixels; nothing is decoded."""
        from PIL import Image as Pillow

        mode = "RGB" if self.channels == 3 else "L"
        return Pillow.frombytes(mode, (self.size, self.size), self.stored(index))

    def check(self) -> Iterator[int]:
        """Compare every part with its hash; yields how many pictures are checked.

        Raises
        ------
        DataError
            At the first part that differs.
        """
        done = 0
        for path, part in zip(self._parts, self.manifest["parts"], strict=True):
            with Path(path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part["sha256"]:
                    raise DataError(
                        f"{sanitize(path)}: other bytes than were written",
                        advice="make the data set again",
                    )
            done += part["count"]
            yield done

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])

    def _labels(self) -> Array:
        data = _read(self.folder / LABELS)
        if hashlib.sha256(data).hexdigest() != self.manifest["labels_sha256"]:
            raise _damaged(self.folder, f"{LABELS} has other bytes than were written")
        try:
            labels = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError):
            raise _damaged(self.folder, f"{LABELS} is no array") from None
        return checked_labels(labels, self.manifest["count"], len(self.classes))

    def _require_parts(self) -> None:
        if len(self) != self.manifest["count"]:
            raise _damaged(self.folder, f"parts of {len(self)} pictures")
        for path, part in zip(self._parts, self.manifest["parts"], strict=True):
            size, wanted = _size(Path(path)), part["count"] * self._bytes
            if size != wanted:
                raise _damaged(self.folder, f"{part['file']} of {size} bytes, not {wanted}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, every field of the right type.

    Raises
    ------
    DataError
        If there is none, it is of another version, or damaged.
    """
    try:
        manifest = json.loads(_read(folder / MANIFEST))
    except (ValueError, RecursionError):
        raise _damaged(folder, f"{MANIFEST} is no JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _damaged(folder, f"{MANIFEST} is something else's")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{sanitize(folder)}: written by another version",
            got=sanitize(manifest.get("version")),
            wanted=VERSION,
            advice="make the data set again",
        )
    wrong = [name for name, kind in _FIELDS.items() if not _is(manifest.get(name), kind)]
    if wrong or not _fits(manifest):
        raise _damaged(folder, f"{MANIFEST} with an impossible {', '.join(wrong) or 'field'}")
    return manifest


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _fits(manifest: dict[str, Any]) -> bool:
    """Whether the fields hold what they must; the manifest is a file like any other."""
    standardise, channels = manifest["standardise"], manifest["channels"]
    return (
        channels in (1, 3)
        and 1 <= manifest["size"] <= 2**16
        and all(isinstance(name, str) for name in manifest["classes"])
        and len(standardise) == 3
        and _is(standardise[0], float | int)
        and all(
            isinstance(numbers, list)
            and len(numbers) == channels
            and all(_is(number, float | int) for number in numbers)
            for numbers in standardise[1:]
        )
        and all(_is_part(part) for part in manifest["parts"])
    )


def _is_part(part: object) -> bool:
    return (
        isinstance(part, dict)
        and isinstance(part.get("file"), str)
        and Path(part["file"]).name == part["file"]
        and _is(part.get("count"), int)
        and part["count"] >= 0
        and isinstance(part.get("sha256"), str)
    )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise DataError(
            f"{sanitize(path.parent)}: {path.name} is missing",
            advice="the data set is unfinished or damaged; run `repvgg-ref shards` again",
        ) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _damaged(folder: Path, got: str) -> DataError:
    return DataError(
        f"{sanitize(folder)}: the data set does not fit its manifest",
        got=got,
        advice="make it again with `repvgg-ref shards`",
    )
