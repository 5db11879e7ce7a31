"""Pictures in which every pixel has a label: a fourth band holds them, 255 for what counts nowhere.

So a loader, a part of a data set and a transform need to know of one picture only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image as Pillow

from repvgg_ref.arrays import Array
from repvgg_ref.data.source import IMAGENET_RGB, DataError, Part, Source

if TYPE_CHECKING:
    from PIL.Image import Image

IGNORED = 255
Colour = tuple[int, int, int]


class LabelError(DataError):
    """Labels of a picture that cannot be meant: no picture is passed over for them."""


class DenseSource:
    """What all data sets with a label a pixel have.

    Attributes
    ----------
    classes : tuple of str
        Names; a label is an index into them, or `IGNORED`.
    """

    dense = True
    channels = 3
    standardise = IMAGENET_RGB
    side: int | None = None
    classes: tuple[str, ...]
    labels: Array  # of the pictures as wholes, which have none: zeros

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.labels)


def is_dense(source: Source) -> bool:
    """Whether every pixel of the source's pictures has a label."""
    return bool(getattr(source, "dense", False))


class Looked(NamedTuple):
    """How many pictures had their labels looked at, and in how many no pixel counts."""

    pictures: int
    void: int


def check_labels(source: Source, *, rank: int = 0, ranks: int = 1) -> Looked:
    """Look at all labels of a source that are files, each of the `ranks` at its share.

    Raises
    ------
    LabelError
        If some cannot be meant.
    """
    while isinstance(source, Part):
        source = source.source
    check = getattr(source, "check_labels", None)
    if check is None:
        return Looked(0, 0)
    mine = range(rank, len(source), ranks)
    return Looked(len(mine), check(mine))


def counts_nowhere(labels: Array) -> bool:
    """Whether no pixel has a label that counts."""
    return bool((labels == IGNORED).all())


def labelled(image: Image, labels: Array) -> Image:
    """One picture of an image in RGB and the labels (H, W) of its pixels."""
    return Pillow.merge("RGBA", (*image.split(), Pillow.fromarray(labels.astype(np.uint8))))


def parted(picture: Image) -> tuple[Image, Image]:
    """The image in RGB, and its labels in mode L."""
    *colours, labels = picture.split()
    return Pillow.merge("RGB", colours), labels


def require_labels(name: str, labels: Array, classes: int) -> None:
    """Raise `LabelError` unless each is a class or `IGNORED`."""
    counts = np.bincount(labels.ravel(), minlength=256)
    wrong = [value for value in range(classes, IGNORED) if counts[value]]
    if wrong:
        raise LabelError(
            f"{name}: labels out of range",
            got=f"{wrong[0]} in {counts[wrong[0]]} pixels",
            wanted=f"0 ... {classes - 1}, or {IGNORED} for what does not count",
        )
