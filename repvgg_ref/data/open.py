"""From what the user named to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from repvgg_ref.data.bundled import digits_source
from repvgg_ref.data.cifar import cifar_source, is_cifar
from repvgg_ref.data.cityscapes import CityscapesSource, is_cityscapes
from repvgg_ref.data.decode import decoder as decoder_called
from repvgg_ref.data.folder import FolderSource
from repvgg_ref.data.generated import PREFIX, ShapesSource
from repvgg_ref.data.hold_out import hold_out, in_both, says_both
from repvgg_ref.data.idx import idx_source, is_idx
from repvgg_ref.data.pixel_shards import MANIFEST, PixelSource
from repvgg_ref.data.scenes import SCENES, ScenesSource
from repvgg_ref.data.source import DataError, Source, class_names
from repvgg_ref.data.splits import (
    DIGITS,
    SPLITS,
    split_folder,
    split_folders,
    splits_of,
    tars_in,
    tars_of,
)
from repvgg_ref.data.tar_shards import TarSource, tar_files
from repvgg_ref.data.write_pixels import PLAN
from weights_io import sanitize


def open_data(
    path: str | Path | None, *, split: str, channels: int = 3, decoder: str = "auto"
) -> Source:
    """The data set at `path`.

    Parameters
    ----------
    path : path, str or None
        None or "digits" is the bundled digits; ``generated:shapes`` and ``generated:scenes`` are
        drawn. A folder holds ``leftImg8bit`` and ``gtFine``, as Cityscapes does; or it
        holds ``train`` and ``val`` (or ``test``), or is itself what it would hold there: one folder
        a class, tar files (with ``train`` or ``val`` in their names), what `repvgg-ref shards`
        wrote, CIFAR's binary files, or MNIST's. A tar file may have ranges in its name:
        ``train-{000..146}.tar``.
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
    if str(path).startswith(SCENES):
        return ScenesSource(str(path), split=split)
    if str(path).startswith(PREFIX):
        return ShapesSource(str(path), split=split)
    decode = decoder_called(decoder, channels=channels)
    if is_cityscapes(Path(path)):
        return CityscapesSource(path, split=split, decode=decode)
    if str(path).endswith(".tar"):
        files = tar_files(str(path))
        classes = class_names(files[0].parent)
        return TarSource(files, decode=decode, channels=channels, classes=classes)
    folder = split_folder(Path(path), split)
    if (folder / MANIFEST).exists() or (folder / PLAN).exists():
        return PixelSource(folder)
    if is_cifar(folder):
        return cifar_source(folder, split=split)
    if is_idx(folder):
        return idx_source(folder, split=split)
    if tars := tars_in(folder):
        files = tars_of(tars, split)
        return TarSource(files, decode=decode, channels=channels, classes=class_names(folder))
    return FolderSource(folder, decode=decode, channels=channels)


class Parts(NamedTuple):
    """A data set to train on, and one to evaluate on; `notes` say how they were told apart.

    `held_out` is a fingerprint of the pictures held out of one set, or None if there were two.
    """

    training: Source
    test: Source
    held_out: str | None
    notes: tuple[str, ...]


def open_parts(path: str | Path | None, *, channels: int = 3, decoder: str = "auto") -> Parts:
    """The data set at `path` as `open_data` reads it, with something apart to evaluate on.

    Where it has no ``val``, pictures of ``train``, or of all, are held out by a hash of their
    names: the same ones on every machine and in every run.

    Raises
    ------
    DataError
        As `open_data`, and if there are too few pictures to hold some out.
    """
    splits = SPLITS if path is None else splits_of(path)
    training = open_data(path, split="train", channels=channels, decoder=decoder)
    if "val" in splits:
        test = open_data(path, split="val", channels=channels, decoder=decoder)
        both = in_both(training, test)
        return Parts(training, test, None, (says_both(both),) if both else ())
    held = hold_out(training)
    both = in_both(held.training, held.test)
    says = f"{held.says}{_beside(path)}"
    notes = says, *((says_both(both),) if both else ())
    return Parts(held.training, held.test, held.fingerprint, notes)


def _beside(path: str | Path | None) -> str:
    """Words on the ``val`` beside a folder ``train`` that was named itself."""
    if path is None or not Path(path).is_dir():
        return ""
    folder = Path(path).resolve()
    beside = split_folders(folder.parent)
    if beside.get("train") != folder or "val" not in beside:
        return ""
    return f" (--data {sanitize(folder.parent)} would evaluate on {sanitize(beside['val'].name)})"
