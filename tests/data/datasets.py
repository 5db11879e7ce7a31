"""Small data sets on disk, and some that misbehave."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from repvgg_ref.arrays import Array
from repvgg_ref.data import ArraySource, Standardise
from tests.data.pictures import drawn

PLAIN = Standardise(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def array_source(count: int, *, side: int = 8, classes: int = 5) -> ArraySource:
    """Picture i has i in its first two bytes, so that it is known again."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    labels = np.arange(count) % classes
    names = tuple(f"class{i}" for i in range(classes))
    return ArraySource(images, labels, classes=names, standardise=PLAIN)


class SometimesBroken:
    """A source some of whose pictures raise an error."""

    def __init__(self, source: ArraySource, errors: dict[int, Exception]) -> None:
        self.source, self.errors = source, errors
        self.classes, self.channels = source.classes, source.channels
        self.standardise, self.labels = source.standardise, source.labels
        self.side = source.side

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def key(self, index: int) -> str:
        return str(index)

    def stored_size(self, index: int) -> int:
        return self.source.stored_size(index)

    def stored(self, index: int) -> bytes:
        return self.source.stored(index)

    def picture(self, index: int) -> Image.Image:
        if index in self.errors:
            raise self.errors[index]
        return self.source.picture(index)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def make_folder(root: Path, *, classes: int = 3, each: int = 4) -> Path:
    """A tree of JPEG and PNG files, of other sizes."""
    for number in range(classes):
        folder = root / f"n{number:02d}"
        folder.mkdir(parents=True)
        for i in range(each):
            picture = drawn(40 + 7 * i, 36 + 5 * number, seed=10 * number + i)
            kind, suffix = ("PNG", "png") if i % 4 == 3 else ("JPEG", "JPEG")
            (folder / f"{i}.{suffix}").write_bytes(encoded(picture, kind))
    return root


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_tar(path: Path, count: int, *, first: int = 0, classes: int = 3) -> Path:
    """WebDataset's layout; every other label in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i in range(first, first + count):
            add(archive, f"pictures/{i:04d}.jpg", encoded(drawn(48, 40, seed=i)))
            label = i % classes
            if i % 2:
                add(archive, f"pictures/{i:04d}.json", json.dumps({"label": label}).encode())
            else:
                add(archive, f"pictures/{i:04d}.cls", f"{label}\n".encode())
    return path


def pixels(picture: Image.Image) -> Array:
    return np.asarray(picture)
