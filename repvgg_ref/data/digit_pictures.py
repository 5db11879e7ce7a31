"""A digit photographed, scanned or typed, brought to how the bundled digits were recorded.

Those were separated, made upright, scaled to a box of 20 x 32 dots, given strokes of one thickness
(NIST's preprocessing, of which E. Alpaydin and C. Kaynak tell), and counted in fields of 4 x 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.digits import INK, SIDE, UPSCALE
from repvgg_ref.errors import ReportedError

if TYPE_CHECKING:
    from PIL.Image import Image

DOTS = SIDE * UPSCALE  # 32, high and wide
_BOX_WIDTH = 20  # dots, of a digit that is not narrow
_NARROW = 12  # dots; a 1 is not made wide
_SHARE = 0.305  # of the dots that is inked, in the mean of the training images
_WORKING = 160  # pixels, of the digit's height
_LARGEST = 512  # pixels of a picture's longer side; larger ones are made smaller first
_CONTRAST = 24  # grey levels between ink and paper, at least
_SPECK = 0.04  # of the largest stroke's area; smaller spots are none of the digit
_WIDE = 1.5  # times as wide as high: more than one digit
_NEEDED = "one digit, darker or lighter than an even ground"


class DigitPictureError(ReportedError):
    """A picture in which no single digit was found."""


class Recorded(NamedTuple):
    """`ink` (8, 8) in 0 ... 16 as the training images, and what was done to get it, in words."""

    ink: Array
    done: tuple[str, ...]


def record(image: Image) -> Recorded:
    """Find the digit in a picture.

    A picture that is recorded as the training images are, light ink on a dark ground from edge to
    edge, is only made small.

    Raises
    ------
    DigitPictureError
        If there is no ink, or more than one digit.
    """
    from PIL import Image as Pillow

    grey = image.convert("L")
    if max(grey.size) > _LARGEST:
        grey.thumbnail((_LARGEST, _LARGEST))
    pixels = np.asarray(grey, np.float64)
    light = _is_light_on_dark(pixels)
    if light and _fills(pixels):
        small = image.convert("L").resize((SIDE, SIDE), Pillow.Resampling.BOX)
        return Recorded(np.asarray(small, np.float32) * np.float32(INK / 255), ())
    mask = _cropped(_strokes(pixels if light else 255 - pixels))
    done = [] if light else ["inverted"]
    done.append(f"cropped to {mask.shape[1]} x {mask.shape[0]} of {grey.width} x {grey.height}")
    if mask.shape[1] > _WIDE * mask.shape[0]:
        raise DigitPictureError(
            "the picture holds more than one digit, or none",
            got=f"ink {mask.shape[1]} x {mask.shape[0]} pixels",
            wanted=_NEEDED,
        )
    return Recorded(_counted(_scaled(_upright(mask))), (*done, "straightened, scaled and centred"))


def _is_light_on_dark(pixels: Array) -> bool:
    """By the ground, which is most of the picture's edge."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool(np.median(edge) < _threshold(pixels))


def _fills(pixels: Array) -> bool:
    """Whether the ink of a square picture reaches from its top to its bottom."""
    height, width = pixels.shape
    inked = np.flatnonzero((pixels > 127).any(axis=1))
    reach = inked[-1] + 1 - inked[0] if inked.size else 0
    return bool(height == width and reach > height * (1 - 1 / SIDE))


def _strokes(pixels: Array) -> Array:
    """Where the digit is, as a mask: what is lighter than the ground around it."""
    from scipy import ndimage

    side = max(3, min(pixels.shape) // 2) | 1
    smooth = ndimage.gaussian_filter(pixels, 0.002 * max(pixels.shape))
    ground = ndimage.uniform_filter(ndimage.minimum_filter(smooth, side), side)
    above = smooth - ground
    ink = above > _threshold(above)
    if ink.all() or not ink.any() or above[ink].mean() - above[~ink].mean() < _CONTRAST:
        raise DigitPictureError(
            "there is no digit in the picture", got="an even grey", wanted=_NEEDED
        )
    return _without_specks(ink)


def _without_specks(ink: Array) -> Array:
    """`ink` without small spots, and without what comes in from the picture's edge."""
    from scipy import ndimage

    labels, count = ndimage.label(ink, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    inside = sizes.copy()
    inside[edge] = 0
    if inside.max() >= _SPECK * sizes.max():
        sizes = inside
    return np.isin(labels, np.flatnonzero(sizes >= _SPECK * sizes.max()))


def _upright(mask: Array) -> Array:
    """The mask at a working size, half of its slant taken out; all of it would make a 7 a 1."""
    from PIL import Image as Pillow

    scale = _WORKING / mask.shape[0]
    width = max(1, round(mask.shape[1] * scale))
    image = Pillow.fromarray((mask * 255).astype(np.uint8)).resize((width, _WORKING))
    y, x = np.nonzero(np.asarray(image) > 127)
    slant = np.cov(x, y)[0, 1] / max(np.var(y), 1e-9) / 2 if len(x) > 1 else 0.0
    room = round(abs(slant) * _WORKING)
    wide = Pillow.new("L", (width + 2 * room, _WORKING))
    wide.paste(image, (room, 0))
    shear = (1, slant, -slant * _WORKING / 2, 0, 1, 0)
    return _cropped(np.asarray(wide.transform(wide.size, Pillow.Transform.AFFINE, shear)) > 127)


def _scaled(mask: Array) -> Array:
    """(32, 32) dots: the digit in its box, its strokes as thick as the training images'."""
    from scipy import ndimage

    room = _WORKING // 2
    padded = np.pad(mask, room)
    distance = ndimage.distance_transform_edt(padded) - ndimage.distance_transform_edt(~padded)
    low, high = -room / 2, float(distance.max())
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if _boxed(distance > middle).mean() > _SHARE else (low, middle)
    return _boxed(distance > (low + high) / 2)


def _boxed(mask: Array) -> Array:
    """The mask's ink in the middle of 32 x 32 dots, from top to bottom."""
    from PIL import Image as Pillow

    if not mask.any():
        return np.zeros((DOTS, DOTS), bool)
    mask = _cropped(mask)
    natural = mask.shape[1] * DOTS / mask.shape[0]
    width = max(1, round(natural)) if natural < _NARROW else _BOX_WIDTH
    image = Pillow.fromarray((mask * 255).astype(np.uint8))
    dots = np.asarray(image.resize((width, DOTS), Pillow.Resampling.BOX)) > 127
    found = np.zeros((DOTS, DOTS), bool)
    left = (DOTS - width) // 2
    found[:, left : left + width] = dots
    return found


def _counted(dots: Array) -> Array:
    """Inked dots in each field of 4 x 4."""
    fields = dots.reshape(SIDE, UPSCALE, SIDE, UPSCALE)  # (8, 4, 8, 4)
    counts: Array = fields.sum(axis=(1, 3))
    return counts.astype(np.float32)


def _threshold(values: Array) -> float:
    """Otsu's: the level that parts `values` into the two groups furthest apart."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    total = below[-1]
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    apart[~np.isfinite(apart)] = -1
    best = np.flatnonzero(apart == apart.max())
    return float(centres[int(best.mean())])


def _cropped(mask: Array) -> Array:
    """The rows and columns from the first to the last that holds ink."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
