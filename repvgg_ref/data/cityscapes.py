"""Cityscapes: streets of 50 cities, a label a pixel (Cordts et al., arXiv 1604.01685).

``leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png``,
or ``..._labelTrainIds.png``, which are taken as they are where they stand beside.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from repvgg_ref.arrays import Array
from repvgg_ref.data.decode import Decode
from repvgg_ref.data.dense import (
    IGNORED,
    Colour,
    DenseSource,
    LabelError,
    counts_nowhere,
    labelled,
    require_labels,
)
from repvgg_ref.data.pictures import readable
from repvgg_ref.data.source import DataError
from weights_io import read_regular, sanitize

IMAGES, LABELS = "leftImg8bit", "gtFine"
_IMAGE_END = "_leftImg8bit.png"
_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
_MOST_ID = 33
_ID_MODES = ("L", "I;16", "I")
_NO_COLOURS = {"1": "of one bit a pixel", "LA": "in grey and alpha", "F": "of real numbers"}
_SAMPLE = 4  # label files of a split that are read before anything begins
_SHOWN = 20  # names
Size = tuple[int, int]  # width and height, as Pillow says it


class Kind(NamedTuple):
    """A class: its id in the label files, its name, its colour in the published palette."""

    label_id: int
    name: str
    colour: Colour


KINDS = (
    Kind(7, "road", (128, 64, 128)),
    Kind(8, "sidewalk", (244, 35, 232)),
    Kind(11, "building", (70, 70, 70)),
    Kind(12, "wall", (102, 102, 156)),
    Kind(13, "fence", (190, 153, 153)),
    Kind(17, "pole", (153, 153, 153)),
    Kind(19, "traffic light", (250, 170, 30)),
    Kind(20, "traffic sign", (220, 220, 0)),
    Kind(21, "vegetation", (107, 142, 35)),
    Kind(22, "terrain", (152, 251, 152)),
    Kind(23, "sky", (70, 130, 180)),
    Kind(24, "person", (220, 20, 60)),
    Kind(25, "rider", (255, 0, 0)),
    Kind(26, "car", (0, 0, 142)),
    Kind(27, "truck", (0, 0, 70)),
    Kind(28, "bus", (0, 60, 100)),
    Kind(31, "train", (0, 80, 100)),
    Kind(32, "motorcycle", (0, 0, 230)),
    Kind(33, "bicycle", (119, 11, 32)),
)
CLASSES = tuple(kind.name for kind in KINDS)


def is_cityscapes(path: Path) -> bool:
    """Whether a folder has one of Cityscapes' two folders."""
    return path.is_dir() and any((path / name).is_dir() for name in (IMAGES, LABELS))


def splits_in(path: Path) -> tuple[str, ...]:
    """Those of "train" and "val" that have images."""
    return tuple(split for split in ("train", "val") if (path / IMAGES / split).is_dir())


class CityscapesSource(DenseSource):
    """The pictures of a split, by city and name.

    Raises
    ------
    DataError
        If there is no picture, one has no labels, or labels have no picture.
    LabelError
        If a label file is a picture in colours or of another size than its picture, which the
        headers of all say; or holds numbers that are no ids: of these only a few are looked at
        here, the others by `check_labels` or when they are read.
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, root: str | Path, *, split: str, decode: Decode) -> None:
        self.root, self._decode = Path(root), decode
        folder = self.root / IMAGES / split
        if not folder.is_dir():
            raise DataError(
                f"{sanitize(self.root)}: no pictures of the split {split}",
                got="no such folder",
                wanted=f"{IMAGES}/{split}/CITY/NAME{_IMAGE_END}",
            )
        self._images = sorted(folder.glob(f"*/*{_IMAGE_END}"))
        if not self._images:
            raise DataError(
                f"{sanitize(folder)}: no picture",
                got=f"{sum(1 for _ in folder.rglob('*'))} other files and folders",
                wanted=f"CITY/NAME{_IMAGE_END}",
            )
        self._truths = self._paired(split)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._check_headers, range(len(self._images))))
        self.labels = np.zeros(len(self._images), np.int64)
        for index in np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(int)).tolist():
            self.truth(index)

    def _paired(self, split: str) -> list[Path]:
        """The label file of every image."""
        found: list[Path] = []
        missing: list[str] = []
        for image in self._images:
            name = image.name.removesuffix(_IMAGE_END)
            folder = self.root / LABELS / split / image.parent.name
            files = (folder / (name + end) for end in (_TRAIN_IDS, _IDS))
            if (truth := next((path for path in files if path.is_file()), None)) is None:
                missing.append(f"{image.parent.name}/{name}")
            else:
                found.append(truth)
        if missing:
            raise DataError(
                f"{sanitize(self.root)}: pictures of {split} without labels",
                got=f"{len(missing)} of {len(self._images)}: {_named(missing)}",
                wanted=f"{LABELS}/{split}/CITY/NAME{_IDS}, or ...{_TRAIN_IDS}",
            )
        self._require_images(split)
        return found

    def _require_images(self, split: str) -> None:
        """Refuse labels of which the picture is not there: a part of the data set is missing."""
        here = {f"{path.parent.name}/{path.name.removesuffix(_IMAGE_END)}" for path in self._images}
        labelled_too = {
            f"{path.parent.name}/{path.name.removesuffix(end)}"
            for end in (_IDS, _TRAIN_IDS)
            for path in (self.root / LABELS / split).glob(f"*/*{end}")
        }
        if missing := sorted(labelled_too - here):
            raise DataError(
                f"{sanitize(self.root)}: labels of {split} without pictures",
                got=f"{len(missing)} of {len(labelled_too)}: {_named(missing)}",
                wanted=f"{IMAGES}/{split}/CITY/NAME{_IMAGE_END}",
                advice="add the pictures, or take the labels away",
            )

    def name(self, index: int) -> str:
        """The picture's path, safe to print."""
        return sanitize(str(self._images[index]))

    def key(self, index: int) -> str:
        """``split/city/picture``."""
        path = self._images[index].relative_to(self.root / IMAGES)
        return unicodedata.normalize("NFC", path.as_posix())

    def stored_size(self, index: int) -> int:
        """The image file's."""
        return self._images[index].stat().st_size

    def stored(self, index: int) -> bytes:
        """The image file."""
        return read_regular(self._images[index])

    def picture(self, index: int) -> Pillow.Image:
        """The image with its labels."""
        image, truth = self._decode(self.name(index), self.stored(index)), self.truth(index)
        self._require_size(index, truth.shape[::-1], image.size)
        return labelled(image, truth)

    def check_labels(self, indices: Iterable[int]) -> int:
        """Read the label files of some pictures; in how many of them no pixel counts.

        Raises `LabelError` for the first that is wrong.
        """

        def check(index: int) -> bool:
            return counts_nowhere(self.truth(index))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return sum(pool.map(check, indices))

    def _check_headers(self, index: int) -> None:
        """Refuse labels that are no ids or have not the picture's size; no pixel is decoded."""
        size, _ = self._header(self._images[index])
        labels_size, mode = self._header(self._truths[index])
        self._require_ids(index, mode)
        self._require_size(index, labels_size, size)

    def _header(self, path: Path) -> tuple[Size, str]:
        with readable(self._place(path)), Pillow.open(path) as file:
            return file.size, file.mode

    def _require_ids(self, index: int, mode: str) -> None:
        if mode in _ID_MODES:
            return
        kind = _NO_COLOURS.get(mode, "in colours")
        raise LabelError(
            f"{sanitize(self._truths[index])}: a picture {kind}, where ids are expected",
            got=f"mode {mode}",
            wanted="one number a pixel (mode L)",
            advice=f"take the files that end in {_IDS}, not ..._color.png",
        )

    def _require_size(self, index: int, labels_size: Size, size: Size) -> None:
        if size != labels_size:
            raise LabelError(
                f"{sanitize(self._truths[index])}: labels of another size than the picture",
                got=f"{labels_size[1]} x {labels_size[0]}",
                wanted=f"{size[1]} x {size[0]}",
            )

    def _place(self, path: Path) -> str:
        """A file below the root: with its city, and short enough to be printed whole."""
        return path.relative_to(self.root).as_posix()

    def truth(self, index: int) -> Array:
        """The labels (H, W) uint8, 0 ... 18 or 255."""
        path = self._truths[index]
        name = sanitize(str(path))
        with readable(self._place(path)), Pillow.open(path) as file:
            mode, values = file.mode, np.asarray(file)
        self._require_ids(index, mode)
        if values.dtype != np.uint8 and not ((values >= 0) & (values <= IGNORED)).all():
            wrong = int(values.max())
            raise LabelError(f"{name}: labels out of range", got=wrong, wanted="0 ... 255")
        ids = values.astype(np.uint8, copy=False)
        if path.name.endswith(_TRAIN_IDS):
            require_labels(name, ids, len(CLASSES))
            return ids
        beyond = ids[(ids > _MOST_ID) & (ids != IGNORED)]
        if beyond.size:
            raise LabelError(
                f"{name}: labels out of range",
                got=f"{beyond[0]} in {np.count_nonzero(ids == beyond[0])} pixels",
                wanted=f"label ids 0 ... {_MOST_ID}, or {IGNORED}",
            )
        return _TO_TRAIN_ID[ids]


def _named(places: Sequence[str]) -> str:
    """``CITY/NAME`` of pictures: all of a few, the first of many."""
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return sanitize(", ".join(places[:_SHOWN])) + more


_TO_TRAIN_ID = np.full(256, IGNORED, np.uint8)
_TO_TRAIN_ID[[kind.label_id for kind in KINDS]] = np.arange(len(KINDS))
