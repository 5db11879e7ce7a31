"""A tree of pictures, one folder a class: what torchvision calls an ImageFolder."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repvgg_ref.data.decode import Decode
from repvgg_ref.data.source import IMAGENET_GREY, IMAGENET_RGB, DataError
from weights_io import read_regular, sanitize

if TYPE_CHECKING:
    from PIL.Image import Image

# torchvision's list.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SHOWN = 5


class FolderSource:
    """``root/<class>/**/<picture>``; classes and pictures in torchvision's order.

    Hidden folders and files that are no pictures by their suffix are passed over.

    Raises
    ------
    DataError
        If there is no class, a class has no picture, or links go in a circle.
    """

    def __init__(self, root: str | Path, *, decode: Decode, channels: int = 3) -> None:
        self.root, self.channels, self._decode = Path(root), channels, decode
        self.standardise = IMAGENET_RGB if channels == 3 else IMAGENET_GREY
        self.side: int | None = None
        self.classes = class_folders(self.root)
        found = [_pictures(os.path.join(self.root, name)) for name in self.classes]  # noqa: PTH118  # strings: a Path for each of a million pictures is slow
        _require_pictures(self.root, dict(zip(self.classes, found, strict=True)))
        self.labels = np.repeat(np.arange(len(found)), [len(paths) for paths in found])
        self._paths = [path for paths in found for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The picture's path, safe to print."""
        return sanitize(self._paths[index])

    def key(self, index: int) -> str:
        """``class/picture``, the same on every system."""
        return unicodedata.normalize(
            "NFC", Path(self._paths[index]).relative_to(self.root).as_posix()
        )

    def stored_size(self, index: int) -> int:
        """The file's."""
        return os.stat(self._paths[index]).st_size  # noqa: PTH116  # as above

    def stored(self, index: int) -> bytes:
        """The file."""
        return read_regular(self._paths[index])

    def picture(self, index: int) -> Image:
        """Read and decode the file."""
        return self._decode(self._paths[index], self.stored(index))


def class_folders(root: Path) -> tuple[str, ...]:
    """The folders in `root` but hidden ones, sorted: a class's label is its place here."""
    return tuple(
        sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and _visible(entry.name))
    )


def is_picture(name: str) -> bool:
    """Whether a file's suffix is a picture's."""
    return name.lower().endswith(EXTENSIONS) and _visible(name)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _pictures(top: str) -> list[str]:
    """Paths of all pictures below `top`, by folder and then by name (as sorted(os.walk))."""
    folders: list[tuple[str, list[str]]] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        status = os.stat(folder)  # noqa: PTH116  # as above
        if (status.st_dev, status.st_ino) in above:
            raise DataError(f"{sanitize(folder)}: symbolic links go in a circle")
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    inside = above | {(status.st_dev, status.st_ino)}
                    waiting.append((entry.path, inside))
                elif is_picture(entry.name):
                    names.append(entry.name)
        folders.append((folder, sorted(names)))
    return [f"{folder}{os.sep}{name}" for folder, names in sorted(folders) for name in names]


def _require_pictures(root: Path, found: dict[str, list[str]]) -> None:
    if not found:
        flat = any(is_picture(name) for name in os.listdir(root))  # noqa: PTH208  # as above
        raise DataError(
            f"{sanitize(root)}: no classes",
            got="pictures that lie in no class's folder" if flat else "no folder",
            wanted="one folder a class, its pictures in it",
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
        raise DataError(
            f"{sanitize(root)}: classes without a picture",
            got=", ".join(map(sanitize, empty[:_SHOWN])) + more,
            wanted=f"files ending in {' '.join(EXTENSIONS)}",
            advice="remove the empty folders, or fill them",
        )
