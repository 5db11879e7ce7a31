"""The bundled example: handwritten digits, and a small RepVGG trained on them.

Files, licence and how they were made: ``repvgg_ref/data/README.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.about import About
from repvgg_ref.models.architectures import Architecture, plain_architecture

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).parent
DATA_PATH = FOLDER / "digits.npz"
MODEL_PATH = FOLDER / "digits-train.pth"

INK = 16  # an image's pixel counts the inked dots, 0 ... 16, of a 4 x 4 field of the scanned digit
SIDE = 8  # pixels
UPSCALE = 4  # network pixels a pixel: back to the 32 x 32 dots of the scan

# Of pixel / INK over the training images.
MEAN, STD = 0.305, 0.376

ABOUT = About(tuple("0123456789"), (SIDE * UPSCALE, SIDE * UPSCALE), (MEAN,), (STD,), 1.0)
"""What the bundled model's file says of its classes and pictures."""


class Digits(NamedTuple):
    """`images` (N, 8, 8) uint8 in 0 ... 16, ink high; `labels` (N,) int64 in 0 ... 9."""

    images: Array
    labels: Array


class DigitsSplit(NamedTuple):
    """1437 images to train on, and 360 (36 a class) that no training has seen."""

    train: Digits
    test: Digits


def load_digits() -> DigitsSplit:
    """Read the images; the split is part of the file, so it never moves."""
    with np.load(DATA_PATH, allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"].astype(np.int64), file["test"]
    return DigitsSplit(Digits(images[~test], labels[~test]), Digits(images[test], labels[test]))


def to_input(images: Array) -> Array:
    """What the bundled network expects: each pixel four wide and high, then standardised.

    Parameters
    ----------
    images : array, shape (N, 8, 8)
        Ink in 0 ... 16, of any real dtype.

    Returns
    -------
    x : array, shape (N, 1, 32, 32), float32

    Raises
    ------
    ShapeError
        If `images` has another shape.
    """
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ShapeError(
            "digits: images of another size", got=images.shape, wanted=f"(N, {SIDE}, {SIDE})"
        )
    x = (images.astype(np.float32) / np.float32(INK) - np.float32(MEAN)) / np.float32(STD)
    # (N, 8, 8) -> (N, 32, 32) -> (N, 1, 32, 32)
    return x.repeat(UPSCALE, axis=1).repeat(UPSCALE, axis=2)[:, None]


def image_to_input(image: Image) -> Array:
    """The network's input (1, 1, 32, 32) for any picture of one digit, light ink on dark ground."""
    from PIL import Image as Pillow

    small = image.convert("L").resize((SIDE, SIDE), Pillow.Resampling.BOX)
    return to_input(np.asarray(small, np.float32)[None] * np.float32(INK / 255))


def sample_paths() -> list[Path]:
    """The bundled pictures, one test image a class: ``digit-<label>-<index>.png``."""
    return sorted(FOLDER.glob("digit-*.png"))


def sample_label(path: Path) -> int:
    """The class that a bundled picture's name states."""
    return int(path.stem.split("-")[1])


def digits_architecture() -> Architecture:
    """Eight blocks of every kind: stride 1 and 2, one and two groups, with and without identity."""
    return plain_architecture(
        depths=(2, 3, 2), channels=(16, 24, 32, 64), groups=2, num_classes=10, in_channels=1
    )
