"""The operations that AutoAugment and RandAugment choose from, and how strong each level is.

Source: the search space of AutoAugment (Cubuk et al., arXiv 1805.09501, appendix). Where it leaves
something open (rounding, which corner a shear leaves alone): what torchvision does to pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_LARGEST_MOVE = 150 / 331  # of the side: 150 pixels of the 331 that AutoAugment was searched on


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """`matrix` maps a pixel of the result to one of `picture`; nearest pixel, black outside."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


_APPLY: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda picture, m: picture,
    "ShearX": lambda picture, m: _affine(picture, (1, m, 0, 0, 1, 0)),
    "ShearY": lambda picture, m: _affine(picture, (1, 0, 0, m, 1, 0)),
    "TranslateX": lambda picture, m: _affine(picture, (1, 0, -int(m), 0, 1, 0)),
    "TranslateY": lambda picture, m: _affine(picture, (1, 0, 0, 0, 1, -int(m))),
    "Rotate": lambda picture, m: picture.rotate(m),
    "Brightness": lambda picture, m: ImageEnhance.Brightness(picture).enhance(1 + m),
    "Color": lambda picture, m: ImageEnhance.Color(picture).enhance(1 + m),
    "Contrast": lambda picture, m: ImageEnhance.Contrast(picture).enhance(1 + m),
    "Sharpness": lambda picture, m: ImageEnhance.Sharpness(picture).enhance(1 + m),
    "Posterize": lambda picture, m: ImageOps.posterize(picture, int(m)),
    "Solarize": lambda picture, m: ImageOps.solarize(picture, m),  # type: ignore[arg-type]  # a float compares as well
    "AutoContrast": lambda picture, m: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, m: ImageOps.equalize(picture),
    "Invert": lambda picture, m: ImageOps.invert(picture),
}

SIGNED = frozenset(
    {
        *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
        *("Brightness", "Color", "Contrast", "Sharpness"),
    }
)
# The magnitude at the lowest level and at the highest; that of a move depends on the picture.
_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("ShearX", "ShearY"), (0.0, 0.3)),
    "Rotate": (0.0, 30.0),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, 0.9)),
    "Solarize": (255.0, 0.0),
}


def apply(operation: str, picture: Image.Image, magnitude: float) -> Image.Image:
    """The picture after one operation; RGB or L."""
    return _APPLY[operation](picture, magnitude)


def magnitude_at(operation: str, level: int, *, levels: int, size: tuple[int, int]) -> float:
    """How strong `operation` is at `level`, one of ``0 ... levels - 1``.

    Parameters
    ----------
    size : (int, int)
        Width and height of the picture.

    Returns
    -------
    float
        0 for an operation that has no strength; a number of bits for "Posterize".
    """
    if operation == "Posterize":
        return float(8 - round(level / ((levels - 1) / 4)))
    if operation.startswith("Translate"):
        side = size[0] if operation == "TranslateX" else size[1]
        return _between(0.0, _LARGEST_MOVE * side, level, levels)
    if operation in _RANGES:
        return _between(*_RANGES[operation], level, levels)
    return 0.0


def _between(start: float, end: float, level: int, levels: int) -> float:
    """The `level`-th of `levels` numbers, evenly spaced, as ``torch.linspace`` rounds them.

    In float32 and counted from the nearer end: a move is cut to whole pixels, so an ulp can decide.
    """
    low, high = np.float32(start), np.float32(end)
    step = (high - low) / np.float32(levels - 1)
    if level < levels // 2:
        return float(low + step * np.float32(level))
    return float(high - step * np.float32(levels - 1 - level))
