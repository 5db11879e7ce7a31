"""Pictures as the arrays a RepVGG was validated on.

Source: section 4.1 of arXiv 2101.03697 and the official validation code: resize the shorter side
to 256, crop the centre to 224, scale to 0 ... 1, subtract ImageNet's mean, divide by its deviation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from repvgg_ref.arrays import Array
from repvgg_ref.data.decode import decoder
from repvgg_ref.data.digit_pictures import DigitPictureError, record
from repvgg_ref.data.digits import ABOUT, digits_architecture, image_to_input, to_input
from repvgg_ref.data.pictures import MOST_PIXELS, ImageError, readable
from repvgg_ref.data.source import IMAGENET_MEAN, IMAGENET_STD, LUMA
from repvgg_ref.models.about import UNKNOWN, About
from repvgg_ref.models.graph import Network
from weights_io import read_regular, sanitize

_RESIZED_TO_CROPPED = (256, 224)


def open_upright(path: str | Path) -> Image.Image:
    """Read a picture as training and evaluation do: as a viewer shows it, in RGB.

    Raises
    ------
    ImageError
        If it is no picture that Pillow reads, is cut off, or is suspiciously large.
    """
    path = Path(path)
    with readable(path.name):
        data = read_regular(path)
    with warnings.catch_warnings():
        # Pillow warns from 90 megapixels on and refuses from 180: the latter is enough.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return decoder(most=2 * MOST_PIXELS)(path.name, data)


def network_input(
    path: str | Path,
    arch: Network,
    *,
    preparation: str = "auto",
    size: int | None = None,
    about: About = UNKNOWN,
    notes: list[str] | None = None,
) -> Array:
    """What the network `arch` is to see of one picture, (1, C, H, W) float32.

    Parameters
    ----------
    preparation : {"auto", "imagenet", "digits"}
        As `eval_input` or as `digit_pictures.record` do; "auto" goes by what the file says.
    size : int, optional
        Of the crop; default what is known of the network, else ImageNet's 224.
    about : About
        What the network was trained on: its mean and deviation, and how much of a picture it saw.
    notes : list of str, optional
        Gets what was done to the picture beyond that, in words.

    Raises
    ------
    ImageError
        If it is no picture, holds no digit where one is needed, or there is no standard way to
        prepare one for this network.
    """
    image = open_upright(path)
    if preparation == "auto":
        preparation = "digits" if _is_of_digits(arch, about) else "imagenet"
        if preparation == "digits" and about == UNKNOWN:  # written before files said what they are
            return image_to_input(image)
    if preparation == "imagenet":
        return eval_input(image, size=size, channels=arch.in_channels, about=about)
    try:
        recorded = record(image)
    except DigitPictureError as error:
        name = sanitize(Path(path).name)
        raise ImageError(f"{name}: {error.what}", got=error.got, wanted=error.wanted) from None
    if notes is not None:
        notes += recorded.done
    return to_input(recorded.ink[None])


def assumed_size(arch: Network, about: About, preparation: str, size: int | None) -> int | None:
    """The size of the crop that `network_input` takes although nobody says it, or None."""
    digits = preparation == "digits" or (preparation == "auto" and _is_of_digits(arch, about))
    said = size is not None or about.input_size is not None
    return None if said or digits else _RESIZED_TO_CROPPED[1]


def _is_of_digits(arch: Network, about: About) -> bool:
    """Whether this is the network of the bundled digits, and not its like for other pictures."""
    if about == UNKNOWN:
        return arch.blocks == digits_architecture().blocks
    known = about.input_size, about.mean, about.std
    return known == (ABOUT.input_size, ABOUT.mean, ABOUT.std)


def eval_input(
    image: Image.Image, *, size: int | None = None, channels: int = 3, about: About = UNKNOWN
) -> Array:
    """The network's input for one picture.

    Parameters
    ----------
    image : PIL image
        As `open_upright` gives it.
    size : int, optional
        Of the crop, in pixels; default `about`'s, else 224. The shorter side is resized first, to
        ``size * 256 // 224`` where `about` says nothing else.
    channels : int
        3, or 1 for a network of greyscale pictures (mean and deviation are then the luma's).
    about : About
        Mean, deviation and sizes other than ImageNet's.

    Returns
    -------
    x : array, shape (1, channels, size, size), float32

    Raises
    ------
    ImageError
        If `channels` is neither.
    """
    if channels not in (1, 3):
        raise ImageError(
            "there is no standard way to prepare a picture for this network",
            got=f"{channels} input channels",
            wanted="3 or 1",
            advice="prepare the array yourself and call Model.forward",
        )
    wanted, of = _RESIZED_TO_CROPPED
    height, width = about.input_size or (of, of)
    if size is None and height != width:
        raise ImageError(
            "pictures are cropped to squares",
            got=f"{height} x {width}, as the model says of itself",
            advice="choose a --size, or prepare the array yourself and call Model.forward",
        )
    size = size or height
    shorter = int(size / about.crop_ratio) if about.crop_ratio else size * wanted // of
    cropped = centre_crop(resize_shorter(image, shorter), size)
    cropped = cropped.convert("RGB" if channels == 3 else "L")
    pixels = np.asarray(cropped, np.float32).reshape(size, size, channels) / np.float32(255)
    mean, std = (np.array(numbers, np.float32) for numbers in _standardisation(channels, about))
    # (H, W, C) -> (1, C, H, W)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])


def _standardisation(channels: int, about: About) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation, a number a channel."""
    if about.mean is not None and about.std is not None:
        return about.mean, about.std
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    luma = np.array(LUMA, np.float32)
    mean, std = (np.array(known, np.float32) @ luma for known in (IMAGENET_MEAN, IMAGENET_STD))
    return [float(mean)], [float(std)]


def resize_shorter(
    image: Image.Image,
    size: int,
    interpolation: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """Shorter side to `size` pixels, the longer in proportion, rounded down (torchvision).

    Raises
    ------
    ImageError
        If the picture is so narrow that the result would not fit into memory.
    """
    width, height = image.size
    if width <= height:
        target = (size, int(size * height / width))
    else:
        target = (int(size * width / height), size)
    if target[0] * target[1] > MOST_PIXELS:
        raise ImageError("the picture is too narrow to be resized", got=f"{width} x {height}")
    return image if target == image.size else image.resize(target, interpolation)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `size` pixels; the image must hold it."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))
