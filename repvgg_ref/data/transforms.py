"""From a decoded picture to the square that the network sees.

Geometry and draws mean what torchvision's classes of the same names do; the random numbers come
from NumPy, so a drawn crop is another one, of the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps

from repvgg_ref.arrays import Array
from repvgg_ref.data.auto_augment import POLICIES, AutoAugment, RandAugment
from repvgg_ref.data.images import centre_crop, resize_shorter
from repvgg_ref.data.source import DataError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SCALE = (0.08, 1.0)  # of the area that a random resized crop covers
RATIO = (3 / 4, 4 / 3)  # of its width to its height
_ATTEMPTS = 10

_T = TypeVar("_T")
Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


class Transform(Protocol):
    """What the loader does to each picture."""

    @property
    def size(self) -> int:
        """Height and width of the result, in pixels."""
        ...

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Array:
        """The picture as (size, size, C) uint8; whatever is random comes from `rng`."""
        ...


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, picture: Image.Image) -> Image.Image:
        """What of the picture lies in the box."""
        return picture.crop((self.left, self.top, self.left + self.width, self.top + self.height))


def random_resized_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """Draw a box of a uniform part of the area and a log-uniform aspect ratio.

    Ten attempts to fit it in, then the largest central one of an allowed ratio
    (``RandomResizedCrop.get_params``; Szegedy et al., arXiv 1409.4842, section 6).
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            return Box(top, int(rng.integers(0, width - w + 1)), h, w)
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def random_shifted_box(size: int, padding: int, rng: np.random.Generator) -> Box:
    """Draw a box of `size` in a square that was padded by `padding` (``RandomCrop``)."""
    top = int(rng.integers(0, 2 * padding + 1))
    return Box(top, int(rng.integers(0, 2 * padding + 1)), size, size)


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of the picture, resized to a square (``RandomResizedCrop``)."""

    size: int
    scale: tuple[float, float] = SCALE
    ratio: tuple[float, float] = RATIO
    interpolation: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draw a box and resize it."""
        box = random_resized_box(
            picture.width, picture.height, rng, scale=self.scale, ratio=self.ratio
        )
        return box.crop(picture).resize((self.size, self.size), self.interpolation)


@dataclass(frozen=True)
class ShiftedCrop:
    """The picture moved by up to `padding` pixels, black where it ends (``RandomCrop``).

    A picture of another size is brought to it first: shorter side resized, centre cropped.
    """

    size: int
    padding: int
    interpolation: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draw a shift."""
        square = centre_crop(resize_shorter(picture, self.size, self.interpolation), self.size)
        box = random_shifted_box(self.size, self.padding, rng)
        # Pillow fills with black what a crop asks for beyond the picture.
        return box._replace(top=box.top - self.padding, left=box.left - self.padding).crop(square)


@dataclass(frozen=True)
class TrainingTransform:
    """Crop, mirror, augment: in this order, as torchvision's own training script has it."""

    crop: ResizedCrop | ShiftedCrop
    flip: float
    augment: Augment | None

    @property
    def size(self) -> int:
        """Height and width of the result."""
        return self.crop.size

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Array:
        """(size, size, C) uint8."""
        picture = self.crop(picture, rng)
        if rng.random() < self.flip:
            picture = ImageOps.mirror(picture)
        if self.augment is not None:
            picture = self.augment(picture, rng)
        return as_array(picture)


@dataclass(frozen=True)
class EvaluationTransform:
    """The picture's middle: shorter side to `resize`, centre crop of `size`; nothing is random."""

    size: int
    resize: int
    interpolation: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, picture: Image.Image, rng: np.random.Generator | None = None) -> Array:
        """(size, size, C) uint8."""
        return as_array(
            centre_crop(resize_shorter(picture, self.resize, self.interpolation), self.size)
        )


def training_transform(
    *,
    size: int,
    crop: str = "resized",
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
    shift: int = 4,
    flip: bool = True,
    auto_augment: str = "none",
    operations: int = 2,
    magnitude: int = 9,
    interpolation: str = "bilinear",
) -> TrainingTransform:
    """The transform that a recipe describes.

    Parameters
    ----------
    size : int
        Of the network's input, in pixels.
    crop : {"resized", "shift"}
        A random resized crop (`scale` and `ratio`), or a shift by up to `shift` pixels.
    flip : bool
        Mirror half of the pictures.
    auto_augment : {"none", "autoaugment", "autoaugment-cifar10", "randaugment"}
        RandAugment takes `operations` and `magnitude` (of 31 levels).
    interpolation : {"bilinear", "bicubic", "nearest"}

    Raises
    ------
    DataError
        If a name is unknown or a number impossible.
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or size < 1 or shift < 0:
        raise DataError(
            "no random crop can be made so",
            got=f"size {size}, scale {scale}, ratio {ratio}, shift {shift}",
            wanted="0 < scale <= 1, 0 < ratio, each smaller number first",
        )
    method = _one_of("interpolation", interpolation, INTERPOLATIONS)
    crops: dict[str, ResizedCrop | ShiftedCrop] = {
        "resized": ResizedCrop(size, scale, ratio, method),
        "shift": ShiftedCrop(size, shift, method),
    }
    augments: dict[str, Augment | None] = {
        "none": None,
        "autoaugment": AutoAugment(POLICIES["imagenet"]),
        "autoaugment-cifar10": AutoAugment(POLICIES["cifar10"]),
        "randaugment": RandAugment(operations, magnitude),
    }
    return TrainingTransform(
        crop=_one_of("crop", crop, crops),
        flip=0.5 if flip else 0.0,
        augment=_one_of("auto_augment", auto_augment, augments),
    )


def evaluation_transform(
    *,
    size: int,
    crop_ratio: float = 0.875,
    resize: int | None = None,
    interpolation: str = "bilinear",
) -> EvaluationTransform:
    """Resize and centre crop; `resize` (of the shorter side) defaults to ``size / crop_ratio``.

    Raises
    ------
    DataError
        If the crop would be larger than the resized picture.
    """
    shorter = int(size / crop_ratio) if resize is None else resize
    if not 1 <= size <= shorter:
        raise DataError(
            "the crop is larger than the resized picture", got=f"size {size}, resize {shorter}"
        )
    method = _one_of("interpolation", interpolation, INTERPOLATIONS)
    return EvaluationTransform(size, shorter, method)


def as_array(picture: Image.Image) -> Array:
    """(H, W, C) uint8; a greyscale picture has one channel."""
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _one_of(setting: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise DataError(f"there is no such {setting}", got=repr(name), wanted=", ".join(known))
    return known[name]
