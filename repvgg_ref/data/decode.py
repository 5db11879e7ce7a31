"""From a file's bytes to a picture: one decoder for training, evaluation, shards and prediction.

simplejpeg (the extra "jpeg") decodes JPEG files faster than Pillow. Both stand on libjpeg-turbo
with its default transform and upsampling, so with the same release of it the pixels are equal;
releases may differ in the last bit. Whatever simplejpeg does not take (other formats, CMYK, turned
pictures, files with errors) goes to Pillow (`pictures`), whose verdict decides.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from repvgg_ref.data.pictures import MOST_PIXELS, is_turned, require_pixels, shown_picture
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import MissingExtraError

DECODERS = ("auto", "pillow", "simplejpeg")

_JPEG = b"\xff\xd8\xff"
_COLOURS = ("Gray", "YCbCr", "RGB")  # of which both libraries make the same RGB

# The name of a picture and the bytes of its file -> the picture.
Decode = Callable[[str, bytes], Image.Image]


def decoder(name: str = "auto", *, channels: int = 3, most: int = MOST_PIXELS) -> Decode:
    """How encoded pictures become pictures of 3 channels (mode RGB) or 1 (L).

    Parameters
    ----------
    name : {"auto", "pillow", "simplejpeg"}
        "auto" takes simplejpeg where it is installed.
    most : int
        Pixels of a picture.

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
    return functools.partial(_decode, library, "RGB" if channels == 3 else "L", most)


def _decode(library: Any, mode: str, most: int, name: str, data: bytes) -> Image.Image:
    picture = _decode_jpeg(library, most, name, data) if data.startswith(_JPEG) else None
    if picture is None:
        picture = shown_picture(name, data, most=most)
    return picture if picture.mode == mode else picture.convert(mode)


def _decode_jpeg(library: Any, most: int, name: str, data: bytes) -> Image.Image | None:
    """The picture in RGB, or None if this is for Pillow to decide."""
    if library is None or is_turned(data):
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        require_pixels(name, width, height, most=most)
        if colours not in _COLOURS:
            return None
        return Image.fromarray(library.decode_jpeg(data))
    except ValueError:
        return None


def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
