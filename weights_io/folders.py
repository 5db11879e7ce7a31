"""A folder given as the path of weights: which file in it is meant."""

from __future__ import annotations

import os
from pathlib import Path

from weights_io.errors import WeightsFileError
from weights_io.readers.shards import SUFFIX
from weights_io.text import sanitize

_WEIGHTS = (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".npz", ".bin", ".pkl")
_SHARD = "-of-"
_SHOWN = 6


def as_folder(path: str | os.PathLike[str]) -> Path | None:
    """`path` if a folder is there."""
    try:
        folder = Path(path)
        return folder if folder.is_dir() else None
    except (OSError, ValueError):  # a NUL in it, or a name too long
        return None


def only_file(folder: Path) -> Path:
    """The index of shards in a folder, else the one weights file.

    Raises
    ------
    WeightsFileError
        If there are several or none.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise WeightsFileError(
            f"{sanitize(folder)}: cannot be listed", got=error.strerror
        ) from None
    found = [name for name in names if name.endswith(SUFFIX)]
    found = found or [n for n in names if n.lower().endswith(_WEIGHTS) and _SHARD not in n]
    if len(found) == 1:
        return folder / found[0]
    shown = ", ".join(sanitize(name) for name in found[:_SHOWN])
    more = f", ... {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise WeightsFileError(
        f"{sanitize(folder)}: cannot be read",
        got=f"a folder with {shown}{more}" if found else _what(names),
        wanted="a weights file",
    )


def _what(names: list[str]) -> str:
    if "Manifest.json" in names:
        return "a Core ML package (.mlpackage), which holds no training checkpoint"
    if "saved_model.pb" in names:
        return "a TensorFlow SavedModel, which holds no training checkpoint"
    if any(_SHARD in name for name in names):
        return f"a folder of shards without their index (a file ending in {SUFFIX})"
    return "a folder"
