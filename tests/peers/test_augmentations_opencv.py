"""Augmentations of segmentation against OpenCV, which PSPNet's published code calls for them.

Two of its habits are not ours. Its ``INTER_NEAREST`` takes the pixel of a window's corner, so that
labels move half a pixel against the image, which is interpolated between middles; ours is its
``INTER_NEAREST_EXACT``. And the published code turns about ``(w / 2, h / 2)``, half a pixel beside
the middle; ours turns about the middle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from repvgg_ref.arrays import Array
from repvgg_ref.data.dense import IGNORED, labelled, parted
from repvgg_ref.data.dense_transforms import MEAN_COLOUR, blurred, padded, rotated, scaled

cv2: Any = pytest.importorskip("cv2")
pytestmark = pytest.mark.peers

HEIGHT, WIDTH = 40, 50
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 19, (HEIGHT, WIDTH)).astype(np.uint8)
PICTURE = labelled(Image.fromarray(PIXELS), LABELS)


def apart(ours: Image.Image, theirs: Array) -> float:
    """Largest difference of a colour."""
    found = np.asarray(parted(ours)[0], np.float64)
    assert found.shape == theirs.shape
    return float(np.abs(found - theirs).max())


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.2, 2.0])
def test_scale(factor: float) -> None:
    ours = scaled(PICTURE, factor)
    how = {"dsize": None, "fx": factor, "fy": factor}
    theirs = cv2.resize(PIXELS.astype(np.float32), interpolation=cv2.INTER_LINEAR, **how)
    assert apart(ours, theirs) <= 1
    labels = np.asarray(parted(ours)[1])
    assert np.array_equal(labels, cv2.resize(LABELS, interpolation=cv2.INTER_NEAREST_EXACT, **how))


@pytest.mark.parametrize("degrees", [-10.0, -3.3, 7.0, 10.0])
def test_rotation(degrees: float) -> None:
    """A smooth image, since OpenCV keeps a place to a 32nd of a pixel; not the border itself."""
    across = np.linspace(0, 3, WIDTH)[None, :, None] + np.arange(3)
    smooth = (127 + 100 * np.sin(across + np.linspace(0, 2, HEIGHT)[:, None, None])).astype(
        np.uint8
    )
    ours = rotated(labelled(Image.fromarray(smooth), LABELS), degrees)
    middle = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1)
    size = WIDTH, HEIGHT

    def turned(array: Array, how: int, fill: Any) -> Array:
        found: Array = cv2.warpAffine(
            array, matrix, size, flags=how, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )
        return found

    theirs = turned(smooth, cv2.INTER_LINEAR, MEAN_COLOUR)
    whole = turned(np.ones((HEIGHT, WIDTH), np.float32), cv2.INTER_LINEAR, 0) == 1
    found = np.asarray(parted(ours)[0], np.float64)
    inside = cv2.erode(whole.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert inside.mean() > 0.6
    assert np.abs(found - theirs)[inside].max() <= 2
    outside = turned(np.ones((HEIGHT, WIDTH), np.float32), cv2.INTER_LINEAR, 0) == 0
    assert outside.any()
    assert (found[outside] == MEAN_COLOUR).mean() > 0.95
    labels, their_labels = np.asarray(parted(ours)[1]), turned(LABELS, cv2.INTER_NEAREST, IGNORED)
    assert (labels == their_labels).mean() > 0.97  # a place between two pixels goes either way
    assert (labels[outside] == IGNORED).mean() > 0.95


def test_blur() -> None:
    theirs = cv2.GaussianBlur(PIXELS.astype(np.float32), (5, 5), 0)
    assert apart(blurred(PICTURE), theirs) <= 0.51
    assert np.array_equal(np.asarray(parted(blurred(PICTURE))[1]), LABELS)


def test_mirror_and_border() -> None:
    assert np.array_equal(np.asarray(parted(ImageOps.mirror(PICTURE))[0]), cv2.flip(PIXELS, 1))
    wide = padded(PICTURE, 49, 57)
    sides = 4, 5, 3, 4  # above, below, left, right: the smaller half first
    constant = cv2.BORDER_CONSTANT
    theirs = cv2.copyMakeBorder(PIXELS, *sides, constant, value=MEAN_COLOUR)
    assert apart(wide, theirs) == 0
    labels = cv2.copyMakeBorder(LABELS, *sides, constant, value=IGNORED)
    assert np.array_equal(np.asarray(parted(wide)[1]), labels)
