"""The classes of all pixels of a picture of any size, by a network of one size of windows.

Source: the published code of PSPNet (arXiv 1612.01105): windows overlap by a third, and what the
softmax says is averaged over all windows that see a pixel, and over a mirrored picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.dense_transforms import MEAN_COLOUR
from repvgg_ref.data.source import IMAGENET_RGB, Standardise
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.models.about import About
from repvgg_ref.models.pspnet import REDUCTION

USUAL = 713

# Images (N, C, H, W) -> logits (N, classes, H, W).
Forward = Callable[[Array], Array]


class Window(NamedTuple):
    """A part of a picture, all of whose ends lie in it."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)


def windows(height: int, width: int, size: int) -> Iterator[Window]:
    """Squares of `size`, a step of ``ceil(2/3 size)`` apart; the last ones end where it does.

    The picture must hold one.
    """
    for top in _starts(height, size):
        for left in _starts(width, size):
            yield Window(top, left, size, size)


def _starts(pixels: int, size: int) -> list[int]:
    step = -(-2 * size // 3)
    count = -(-(pixels - size) // step) + 1
    return [min(n * step, pixels - size) for n in range(count)]


def fitting(pixels: int) -> int:
    """The least ``8 k + 1`` that is not below `pixels`."""
    return -(-(pixels - 1) // REDUCTION) * REDUCTION + 1


def window_of(about: About, asked: int | None = None) -> int:
    """The side of windows: what is asked for, what the network was trained on, or 713.

    Raises
    ------
    ShapeError
        If it is not ``8 k + 1``.
    """
    size = asked or (about.input_size or (USUAL, USUAL))[0]
    if size % REDUCTION != 1 or size < REDUCTION:
        raise ShapeError(
            "a window's side must be 8k + 1", got=size, wanted=f"such as {fitting(size)}"
        )
    return size


def standardise_of(about: About) -> Standardise:
    """How pixels become the network's input: as it was trained, else by ImageNet's mean."""
    if about.mean is None or about.std is None:
        return IMAGENET_RGB
    return Standardise(1 / 255, about.mean, about.std)


def probabilities(
    pixels: Array,
    forward: Forward,
    *,
    size: int,
    flip: bool,
    whole: bool,
    standardise: Standardise = IMAGENET_RGB,
) -> Array:
    """What the network thinks of every pixel: `probabilities_of_forms` of one network alone.

    array, shape (classes, H, W), float32 or wider: parts that add up to 1
    """
    (found,) = probabilities_of_forms(
        pixels, forward, size=size, flip=flip, whole=whole, standardise=standardise
    )
    return np.asarray(found)


def probabilities_of_forms(
    pixels: Array,
    forward: Forward,
    *,
    size: int,
    flip: bool,
    whole: bool,
    standardise: Standardise = IMAGENET_RGB,
) -> Array:
    """What the forms of a network think of every pixel, each window shown to all of them.

    Parameters
    ----------
    pixels : array, shape (H, W, 3), uint8
    forward : callable
        A standardised image (1, 3, h, w), h and w ``8 k + 1``, -> logits (forms, classes, h, w).
    size : int
        Side of the windows, ``8 k + 1``.
    flip : bool
        Average over the mirrored picture too.
    whole : bool
        Show a picture that is smaller than a window as it is, padded to ``8 k + 1``; else it is
        padded to a window, as PSPNet's evaluation does.

    Returns
    -------
    array, shape (forms, classes, H, W), float32 or wider: parts that add up to 1
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ReportedError(
            "this is no picture", got=f"{pixels.dtype} {pixels.shape}", wanted="uint8 (H, W, 3)"
        )
    height, width = pixels.shape[:2]
    if whole and max(height, width) <= size:
        target = fitting(height), fitting(width)
        parts = [Window(0, 0, *target)]
    else:
        target = max(height, size), max(width, size)
        parts = list(windows(*target, size))
    ground, (top, left) = _padded(pixels, target)
    total: Array | None = None
    counts = np.zeros(target, np.float32)
    for part in parts:
        found = _seen(ground[part.pixels], forward, standardise, flip=flip)
        if total is None:
            total = np.zeros((*found.shape[:2], *target), found.dtype)
        total[:, :, *part.pixels] += found
        counts[part.pixels] += 1
    assert total is not None
    inner = slice(top, top + height), slice(left, left + width)
    mean: Array = total[:, :, *inner] / counts[inner]
    return mean


def _padded(pixels: Array, target: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """The picture in the middle of mean colour, and where it begins."""
    height, width = pixels.shape[:2]
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    ground = np.empty((*target, 3), np.uint8)
    ground[:] = MEAN_COLOUR
    ground[top : top + height, left : left + width] = pixels
    return ground, (top, left)


def _seen(pixels: Array, forward: Forward, standardise: Standardise, *, flip: bool) -> Array:
    """The softmax (forms, classes, h, w) of one window."""
    found: Array = _softmax(forward(standardise(pixels[None])))
    if flip:
        mirrored = np.ascontiguousarray(pixels[:, ::-1])
        found = (found + _softmax(forward(standardise(mirrored[None])))[..., ::-1]) / 2
    return found


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    parts: Array = powers / powers.sum(axis=1, keepdims=True)
    return parts
