"""What happens to an image and the labels of its pixels alike, before a network sees them.

PSPNet's augmentations (Zhao et al., arXiv 1612.01105, section 5.1), in the order of its published
code: scale, rotation, blur, mirror, crop. Images are interpolated linearly without smoothing first,
as OpenCV's ``INTER_LINEAR`` does; labels take the nearest pixel. What lies outside of a picture is
of ImageNet's mean colour, and its label does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from repvgg_ref.arrays import Array
from repvgg_ref.data.dense import IGNORED, labelled, parted
from repvgg_ref.data.source import IMAGENET_MEAN

SCALES = (0.5, 2.0)
LARGEST_ANGLE = 10.0  # degrees
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # what OpenCV takes for 5 taps without a deviation
MEAN_COLOUR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)

_LINEAR, _NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


@dataclass(frozen=True)
class DenseTrainingTransform:
    """Scale, rotate, blur, mirror and crop, in this order; each is drawn from the picture's stream.

    Attributes
    ----------
    size : int
        Height and width of the crop.
    flip, rotate, blur : float
        How often.
    """

    size: int
    scales: tuple[float, float] = SCALES
    angle: float = LARGEST_ANGLE
    rotate: float = 0.5
    blur: float = 0.5
    flip: float = 0.5

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Array:
        """(size, size, 4) uint8: the image, and the labels behind its colours."""
        picture = scaled(picture, rng.uniform(*self.scales))
        if rng.random() < self.rotate:
            picture = rotated(picture, rng.uniform(-self.angle, self.angle))
        if rng.random() < self.blur:
            picture = blurred(picture)
        if rng.random() < self.flip:
            picture = ImageOps.mirror(picture)
        return np.asarray(randomly_cropped(picture, self.size, rng))


@dataclass(frozen=True)
class DenseEvaluationTransform:
    """The picture's middle, padded where it ends; nothing is random."""

    size: int

    def __call__(self, picture: Image.Image, rng: np.random.Generator | None = None) -> Array:
        """(size, size, 4) uint8: the image, and the labels behind its colours."""
        whole = padded(picture, self.size, self.size)
        top, left = (whole.height - self.size) // 2, (whole.width - self.size) // 2
        return np.asarray(whole.crop((left, top, left + self.size, top + self.size)))


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    """Height and width times `factor`, rounded, halves down: else the last row lay outside."""
    width, height = (max(1, math.ceil(side * factor - 0.5)) for side in picture.size)
    step = 1 / factor
    matrix = (step, 0.0, 0.0, 0.0, step, 0.0)  # pixels' middles go to pixels' middles
    image, labels = parted(picture)
    affine = Image.Transform.AFFINE
    return labelled(
        image.transform((width, height), affine, matrix, _LINEAR, fillcolor=MEAN_COLOUR),
        np.asarray(labels.transform((width, height), affine, matrix, _NEAREST, fillcolor=IGNORED)),
    )


def rotated(picture: Image.Image, degrees: float) -> Image.Image:
    """Turned about its middle, counter-clockwise, in its own size."""
    image, labels = parted(picture)
    return labelled(
        image.rotate(degrees, _LINEAR, fillcolor=MEAN_COLOUR),
        np.asarray(labels.rotate(degrees, _NEAREST, fillcolor=IGNORED)),
    )


def blurred(picture: Image.Image) -> Image.Image:
    """The image averaged by a 5x5 Gaussian, `BLUR` down and across; its labels stay.

    Beyond the border the picture is mirrored about its outermost pixels.
    """
    image, labels = parted(picture)
    half, weights = len(BLUR) // 2, np.array(BLUR, np.float32)
    pixels = np.asarray(image, np.float32)
    for axis in (0, 1):
        wide = [(half, half) if axis == each else (0, 0) for each in range(3)]
        # a picture of one row has nothing to be mirrored
        mode = "reflect" if pixels.shape[axis] > 1 else "edge"
        long = np.pad(pixels, wide, mode=mode)  # type: ignore[call-overload]  # either is a mode
        count = pixels.shape[axis]
        taken = (long.take(range(tap, tap + count), axis) for tap in range(len(BLUR)))
        pixels = sum(weight * part for weight, part in zip(weights, taken, strict=True))
    rounded = np.floor(np.clip(pixels, 0, 255) + 0.5).astype(np.uint8)
    return labelled(Image.fromarray(rounded), np.asarray(labels))


def padded(picture: Image.Image, height: int, width: int) -> Image.Image:
    """At least so high and wide, the picture in the middle."""
    full = max(width, picture.width), max(height, picture.height)
    if full == picture.size:
        return picture
    ground = Image.new("RGBA", full, (*MEAN_COLOUR, IGNORED))
    ground.paste(picture, ((full[0] - picture.width) // 2, (full[1] - picture.height) // 2))
    return ground


def randomly_cropped(picture: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A square of `size` anywhere in the picture, which is padded to hold it."""
    whole = padded(picture, size, size)
    top = int(rng.integers(0, whole.height - size + 1))
    left = int(rng.integers(0, whole.width - size + 1))
    return whole.crop((left, top, left + size, top + size))
