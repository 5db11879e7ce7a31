"""Which parts a data set has: one to train on, one to evaluate on, or none of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from repvgg_ref.data.cifar import is_cifar
from repvgg_ref.data.cityscapes import is_cityscapes, splits_in
from repvgg_ref.data.folder import class_folders, is_picture
from repvgg_ref.data.generated import PREFIX
from repvgg_ref.data.idx import is_idx
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import did_you_mean
from weights_io import sanitize

SPLITS = ("train", "val")
DIGITS = "digits"  # a folder of this name is ./digits

# What people call them; the first that is there is taken.
_CALLED = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
}


def splits_of(path: str | Path) -> tuple[str, ...]:
    """Which splits the data set has: "train" and "val", one of them, or none of its own.

    With none, whatever split is asked for is the same pictures.
    """
    if str(path) == DIGITS or str(path).startswith(PREFIX):
        return SPLITS
    if is_cifar(Path(path)) or is_idx(Path(path)):
        return SPLITS
    if is_cityscapes(Path(path)):
        return splits_in(Path(path))
    if not Path(path).is_dir():
        return ()
    folders = split_folders(Path(path))
    if folders:
        return tuple(split for split in SPLITS if split in folders)
    spoken = {spoken_of(tar) for tar in tars_in(Path(path))}
    return tuple(split for split in SPLITS if split in spoken)


def split_folders(path: Path) -> dict[str, Path]:
    """The folders of `path` that are splits: they are called so and hold no picture themselves.

    A class may be called "train" or "test", too; where there is only a name for evaluation, and
    other folders beside it, it is one.
    """
    by_name = {name.lower(): path / name for name in reversed(class_folders(path))}
    found = {
        split: next((by_name[name] for name in names if _is_split(by_name.get(name))), None)
        for split, names in _CALLED.items()
    }
    known = {name for names in _CALLED.values() for name in names}
    alone = by_name.keys() <= known
    certain = found["train"] is not None or "val" in by_name or alone
    return {split: folder for split, folder in found.items() if folder is not None and certain}


def split_folder(path: Path, split: str) -> Path:
    """The folder of the split, or `path` itself if it has none.

    Raises
    ------
    DataError
        If there is no folder, or only the other split's.
    """
    if not path.is_dir():
        raise DataError(
            f"{sanitize(path)}: no such folder",
            got="a file" if path.exists() else None,
            advice=did_you_mean(path, [DIGITS, f"{PREFIX}shapes", f"{PREFIX}scenes"]),
        )
    folders = split_folders(path)
    if folders and split not in folders:
        raise DataError(
            f"{sanitize(path)}: no folder called {split}",
            got=", ".join(sanitize(folder.name) for folder in folders.values()),
            wanted="train and val, or one folder a class",
        )
    return folders.get(split, path)


def tars_in(folder: Path) -> list[Path]:
    """The tar files in a folder that holds no class folders."""
    return [] if class_folders(folder) else sorted(folder.glob("*.tar"))


def spoken_of(tar: Path) -> str | None:
    """The split that a tar file's name speaks of, if it is one alone."""
    words = set(re.split("[^a-z]+", tar.name.lower()))
    spoken = [split for split, names in _CALLED.items() if words & set(names)]
    return spoken[0] if len(spoken) == 1 else None


def tars_of(tars: list[Path], split: str) -> list[Path]:
    """Those with the split's name in theirs; all of them if no name speaks of one."""
    named = [path for path in tars if spoken_of(path) is not None]
    wanted = [path for path in named if spoken_of(path) == split]
    if named and not wanted:
        raise DataError(
            f"{sanitize(named[0].parent)}: no tar file of the {split} split",
            got=", ".join(sanitize(path.name) for path in named[:3]),
            wanted=f"{split} in the name",
        )
    return wanted or tars


def _is_split(folder: Path | None) -> bool:
    if folder is None:
        return False
    with os.scandir(folder) as entries:
        return not any(is_picture(entry.name) for entry in entries)
