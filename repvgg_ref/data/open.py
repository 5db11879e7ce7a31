"""From what the user named to a data set."""

from __future__ import annotations

from pathlib import Path

from repvgg_ref.data.bundled import digits_source
from repvgg_ref.data.cifar import cifar_source, is_cifar
from repvgg_ref.data.decode import decoder as decoder_called
from repvgg_ref.data.folder import FolderSource, class_folders
from repvgg_ref.data.generated import PREFIX, ShapesSource
from repvgg_ref.data.idx import idx_source, is_idx
from repvgg_ref.data.pixel_shards import MANIFEST, PixelSource
from repvgg_ref.data.source import DataError, Source, class_names
from repvgg_ref.data.tar_shards import TarSource, tar_files
from repvgg_ref.data.write_pixels import PLAN
from repvgg_ref.errors import did_you_mean
from weights_io import sanitize

SPLITS = ("train", "val")
DIGITS = "digits"  # a folder of this name is ./digits


def open_data(
    path: str | Path | None, *, split: str, channels: int = 3, decoder: str = "auto"
) -> Source:
    """The data set at `path`.

    Parameters
    ----------
    path : path, str or None
        None or "digits" is the bundled digits; ``generated:shapes`` a generated set. A folder
        holds ``train`` and ``val``, or is itself what it would hold there: one folder a class, tar
        files (with ``train`` or ``val`` in their names), what `repvgg-ref shards` wrote, CIFAR's
        binary files, or MNIST's. A tar file may have ranges in its name: ``train-{000..146}.tar``.
    split : {"train", "val"}
    channels : int
        3, or 1 for greyscale; of folders and tar files.
    decoder : {"auto", "pillow", "simplejpeg"}
        Of folders and tar files.

    Raises
    ------
    DataError
        If there is nothing of a known kind, or it is empty or damaged.
    """
    if split not in SPLITS:
        raise DataError("there is no such split", got=repr(split), wanted=", ".join(SPLITS))
    if path is None or str(path) == DIGITS:
        return digits_source(split)
    if str(path).startswith(PREFIX):
        return ShapesSource(str(path), split=split)
    decode = decoder_called(decoder, channels=channels)
    if str(path).endswith(".tar"):
        files = tar_files(str(path))
        classes = class_names(files[0].parent)
        return TarSource(files, decode=decode, channels=channels, classes=classes)
    folder = _folder(Path(path), split)
    if (folder / MANIFEST).exists() or (folder / PLAN).exists():
        return PixelSource(folder)
    if is_cifar(folder):
        return cifar_source(folder, split=split)
    if is_idx(folder):
        return idx_source(folder, split=split)
    if tars := _tars(folder):
        files = _of_split(tars, split)
        return TarSource(files, decode=decode, channels=channels, classes=class_names(folder))
    return FolderSource(folder, decode=decode, channels=channels)


def splits_of(path: str | Path) -> tuple[str, ...]:
    """Which splits the data set has: "train" and "val", one of them, or none of its own.

    With none, whatever split is asked for is the same pictures.
    """
    if str(path) == DIGITS or str(path).startswith(PREFIX):
        return SPLITS
    if is_cifar(Path(path)) or is_idx(Path(path)):
        return SPLITS
    folders = tuple(split for split in SPLITS if (Path(path) / split).is_dir())
    if folders or not Path(path).is_dir():
        return folders
    tars = _tars(Path(path))
    return tuple(split for split in SPLITS if any(split in tar.name for tar in tars))


def _folder(path: Path, split: str) -> Path:
    """The folder of the split, or `path` itself if it has none."""
    if not path.is_dir():
        raise DataError(
            f"{sanitize(path)}: no such folder",
            got="a file" if path.exists() else "nothing",
            advice=did_you_mean(path, [DIGITS, f"{PREFIX}shapes"]),
        )
    if (path / split).is_dir():
        return path / split
    if any((path / other).is_dir() for other in SPLITS):
        raise DataError(
            f"{sanitize(path)}: no folder called {split}",
            wanted="train and val, or one folder a class",
        )
    return path


def _tars(folder: Path) -> list[Path]:
    """The tar files in a folder that holds no class folders."""
    return [] if class_folders(folder) else sorted(folder.glob("*.tar"))


def _of_split(tars: list[Path], split: str) -> list[Path]:
    """Those with the split's name in theirs; all of them if no name speaks of one."""
    named = [path for path in tars if any(other in path.name for other in SPLITS)]
    wanted = [path for path in named if split in path.name]
    if named and not wanted:
        raise DataError(
            f"{sanitize(named[0].parent)}: no tar file of the {split} split",
            got=", ".join(sanitize(path.name) for path in named[:3]),
            wanted=f"{split} in the name",
        )
    return wanted or tars
