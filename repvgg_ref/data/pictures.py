"""From a file's bytes to the picture that a viewer shows, for whoever reads one.

Turned upright by its EXIF tag, the first frame of several, transparent parts on white, in RGB.
Sixteen bits are rounded to eight: 65535 is white, whatever else the picture holds.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from weights_io import IrregularFileError, sanitize

MOST_PIXELS = 89_478_485  # of a picture; where Pillow begins to warn of decompression bombs

_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106  # tags of TIFF, and so of EXIF
_EXIF = b"Exif\0\0"
# EXIF 2.3, table 6: how the stored picture is to be turned.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255)


class ImageError(ReportedError):
    """A picture that cannot be read, or that no input can be made of."""


def shown_picture(name: str, data: bytes, *, most: int = MOST_PIXELS) -> Image.Image:
    """The picture in the file `data`, called `name`, in mode RGB.

    Raises
    ------
    ImageError
        If it is no picture that Pillow reads, is cut off, has more than `most` pixels, or holds
        numbers that nobody can tell the scale of.
    """
    with readable(name), Image.open(io.BytesIO(data)) as image:
        require_pixels(name, *image.size, most=most)
        image.load()
        return upright(_in_rgb(name, image), _orientation_of(image))


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever a broken picture causes into an `ImageError` about `name`.

    Files that are missing or may not be read pass as they are.
    """
    try:
        yield
    except (ImageError, FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except IrregularFileError as error:
        raise ImageError(f"{sanitize(name)}: not a picture", got=error.strerror) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{sanitize(name)}: not a picture", wanted="a format that Pillow reads"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{sanitize(name)}: the picture is too large", got=error) from None
    except Exception as error:  # Pillow's readers raise any kind, of which OSError is the usual one
        raise ImageError(f"{sanitize(name)}: the picture is damaged", got=error) from None


def require_pixels(name: str, width: int, height: int, *, most: int = MOST_PIXELS) -> None:
    """Raise `ImageError` if there are more than `most`."""
    if width * height > most:
        raise ImageError(
            f"{sanitize(name)}: the picture is too large",
            got=f"{width} x {height}",
            wanted=f"at most {most} pixels",
        )


def is_turned(data: bytes) -> bool:
    """Whether a JPEG file's tags may ask for a turn."""
    place = data.find(_EXIF)
    return b"tiff:Orientation" in data or (place >= 0 and _orientation(data[place:]) in _TURNS)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture, turned as EXIF's `orientation` says; left as it is by what says nothing."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _orientation_of(image: Image.Image) -> int:
    data = image.info.get("exif")
    if isinstance(data, bytes):
        return _orientation(data)
    found = image.getexif().get(_ORIENTATION, 1)  # TIFF's own tag, or one in a text of XMP
    return found if isinstance(found, int) else 1


def _orientation(data: bytes) -> int:
    """The tag in EXIF data, or 1; by hand, since it is asked of files that Pillow does not open."""
    data = data.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            if tag == _ORIENTATION:
                return int(
                    struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)[0]
                )
    except struct.error:
        pass
    return 1


def _in_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _in_eight_bits(name, image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        shown = image.convert("RGBA")
        ground = Image.new("RGBA", shown.size, (*_WHITE, 255))
        return Image.alpha_composite(ground, shown).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_eight_bits(name: str, image: Image.Image) -> Image.Image:
    values = np.asarray(image, np.float64)
    if image.mode.startswith("I;16") and _is_negative(image):
        values = 65535 - values
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    white = 65535.0 if sixteen and image.mode != "F" else _white(name, values)
    # the nearest, and halves upwards
    pixels = np.floor(values * (255 / white) + 0.5).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        pixels[values == clear] = 255
    return Image.fromarray(pixels)


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF file, which Pillow sees to in eight bits only."""
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(_PHOTOMETRIC, 1) == 0)


def _white(name: str, values: Array) -> float:
    """What is white among numbers whose file does not say it."""
    least, largest = float(values.min(initial=0)), float(values.max(initial=0))
    if least >= 0:  # false for NaN
        for white in (1.0, 255.0, 65535.0):
            if largest <= white:
                return white
    raise ImageError(
        f"{sanitize(name)}: nobody can tell which of its numbers is white",
        got=f"numbers from {least:g} to {largest:g}",
        wanted="0 to 1, 0 to 255, or 0 to 65535",
    )
