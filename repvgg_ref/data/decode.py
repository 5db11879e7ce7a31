"""From a file's bytes to a picture, as torchvision's loader reads it: no EXIF turn, RGB.

simplejpeg (the extra "jpeg") decodes JPEG files faster than Pillow. Both stand on libjpeg-turbo
with its default transform and upsampling, so with the same release of it the pixels are equal;
releases may differ in the last bit. Whatever simplejpeg does not take (other formats, CMYK, files
with errors) goes to Pillow, whose verdict decides.
"""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from repvgg_ref.data.images import MOST_PIXELS, ImageError, readable
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import MissingExtraError
from weights_io import sanitize

DECODERS = ("auto", "pillow", "simplejpeg")

_JPEG = b"\xff\xd8\xff"
_COLOURS = ("Gray", "YCbCr", "RGB")  # of which both libraries make the same RGB

# The name of a picture and the bytes of its file -> the picture.
Decode = Callable[[str, bytes], Image.Image]


def decoder(name: str = "auto", *, channels: int = 3) -> Decode:
    """How encoded pictures become pictures of 3 channels (mode RGB) or 1 (L).

    Parameters
    ----------
    name : {"auto", "pillow", "simplejpeg"}
        "auto" takes simplejpeg where it is installed.

    Raises
    ------
    DataError
        If there is no such decoder.
    MissingExtraError
        If simplejpeg is asked for and not installed.
    """
    if name not in DECODERS:
        raise DataError("there is no such decoder", got=repr(name), wanted=", ".join(DECODERS))
    library = None if name == "pillow" else _simplejpeg()
    if library is None and name == "simplejpeg":
        raise MissingExtraError(
            "simplejpeg is not installed", advice='pip install "repvgg-ref[jpeg]"'
        )
    return functools.partial(_decode, library, "RGB" if channels == 3 else "L")


def _decode(library: Any, mode: str, name: str, data: bytes) -> Image.Image:
    picture = _decode_jpeg(library, name, data) if data.startswith(_JPEG) else None
    if picture is None:
        picture = _decode_any(name, data)
    return picture if picture.mode == mode else picture.convert(mode)


def _decode_jpeg(library: Any, name: str, data: bytes) -> Image.Image | None:
    """The picture in RGB, or None if this is for Pillow to decide."""
    if library is None:
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        _require_pixels(name, width, height)
        if colours not in _COLOURS:
            return None
        return Image.fromarray(library.decode_jpeg(data))
    except ValueError:
        return None


def _decode_any(name: str, data: bytes) -> Image.Image:
    with readable(name), Image.open(io.BytesIO(data)) as image:
        _require_pixels(name, *image.size)
        image.load()
        # Pillow warns of a palette's transparency, which RGB has no place for.
        image.info.pop("transparency", None)
        return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _require_pixels(name: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"{sanitize(name)}: the picture is too large",
            got=f"{width} x {height}",
            wanted=f"at most {MOST_PIXELS} pixels",
        )


def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
