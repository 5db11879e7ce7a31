"""A picture is the same one to whoever reads it: prediction, training, evaluation, tar, shards.

What it must be is computed by NumPy from what was put into the file.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from repvgg_ref.arrays import Array
from repvgg_ref.data import (
    Loader,
    evaluation_transform,
    open_data,
    training_transform,
)
from repvgg_ref.data.decode import decoder
from repvgg_ref.data.images import open_upright
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.data.write_pixels import write_pixels
from tests.data.datasets import add
from tests.data.pictures import drawn

SIDE = 24
RGB = np.asarray(drawn(SIDE, SIDE))
GREY = np.asarray(drawn(SIDE, SIDE, grey=True))
ALPHA = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 7 % 256).astype(np.uint8)
EXIF_TURNS: dict[int, Callable[[Array], Array]] = {  # upright -> as a camera stores it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def of_array(pixels: Array, kind: str = "PNG", **options: Any) -> bytes:
    return file_of(Image.fromarray(np.ascontiguousarray(pixels)), kind, **options)


def png(colour: int, samples: Array, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16-bit samples (H, W, C), by hand: Pillow writes only grey ones."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width, _ = samples.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    lines = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples))
    inner = b"".join(chunk(*each) for each in chunks)
    body = chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + inner + body


def negative(tiff: bytes) -> bytes:
    """A greyscale TIFF file that says that 0 is white (tag 262, a short)."""
    black, white = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert tiff.count(black) == 1
    return tiff.replace(black, white)


def three(grey: Array) -> Array:
    return np.repeat(grey[..., None], 3, axis=2)


def on_white(colours: Array, alpha: Array) -> Array:
    share = alpha[..., None].astype(np.float64) / 255
    return colours * share + 255 * (1 - share)


def exif(orientation: int, order: str = "<") -> bytes:
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return (
        b"Exif\0\0" + start + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    )


def sixteen(largest: int) -> Array:
    steps = np.arange(SIDE * SIDE, dtype=np.int64) * largest // (SIDE * SIDE - 1)
    return steps.reshape(SIDE, SIDE)


def cases() -> dict[str, tuple[str, bytes, Array, float]]:
    """Suffix, file, what it shows, and by how much a pixel may differ (rounding of a mean)."""
    high = sixteen(65535)
    rounded = np.floor(high / 257 + 0.5)
    dark = sixteen(200)  # almost black, though it would be light in eight bits
    palette = Image.fromarray(RGB).quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    index = np.asarray(palette)
    bits = GREY > 100
    clear = bytes(range(0, 256, 16))
    cmyk = Image.fromarray(RGB).convert("CMYK")
    key = np.asarray(cmyk).astype(int)
    plain = 255 - np.minimum(255, key[..., :3] + key[..., 3:])
    found: dict[str, tuple[str, bytes, Array, float]] = {
        "grey": ("png", of_array(GREY), three(GREY), 0),
        "sixteen-bit grey": ("png", of_array(high.astype(np.uint16)), three(rounded), 0),
        "sixteen-bit grey, dark": (
            "png",
            of_array(dark.astype(np.uint16)),
            three(np.floor(dark / 257 + 0.5)),
            0,
        ),
        "sixteen-bit grey, one value clear": (
            "png",
            png(0, high[..., None], (b"tRNS", struct.pack(">H", int(high[3, 4])))),
            three(np.where(high == high[3, 4], 255, rounded)),
            0,
        ),
        "sixteen-bit grey with alpha": (
            "png",
            png(4, np.dstack([high, np.full_like(high, 65535)])),
            three(rounded),
            1,
        ),
        "sixteen-bit colour": ("png", png(2, three(high)), three(rounded), 1),
        "sixteen-bit tiff": ("tiff", of_array(high.astype(np.uint16), "TIFF"), three(rounded), 0),
        "sixteen-bit tiff, 0 is white": (
            "tiff",
            negative(of_array(high.astype(np.uint16), "TIFF")),
            three(np.floor((65535 - high) / 257 + 0.5)),
            0,
        ),
        "tiff, 0 is white": ("tiff", negative(of_array(GREY, "TIFF")), 255 - three(GREY), 0),
        "sixteen-bit pgm": (
            "pgm",
            b"P5 24 24 65535\n" + high.astype(">u2").tobytes(),
            three(rounded),
            0,
        ),
        "pgm of 1023": (
            "pgm",
            b"P5 24 24 1023\n" + sixteen(1023).astype(">u2").tobytes(),
            three(sixteen(1023) * 255 / 1023),
            1,
        ),
        "float tiff of 0 to 1": (
            "tiff",
            of_array((GREY / 255).astype(np.float32), "TIFF"),
            three(GREY),
            0,
        ),
        "one bit": ("png", of_array(bits), three(np.where(bits, 255, 0)), 0),
        "palette": ("png", file_of(palette), shown, 0),
        "palette, one colour clear": (
            "png",
            file_of(palette, transparency=5),
            np.where((index == 5)[..., None], 255, shown),
            0,
        ),
        "palette, colours half clear": (
            "png",
            file_of(palette, transparency=clear),
            on_white(shown, np.frombuffer(clear, np.uint8)[index]),
            1,
        ),
        "colours, one clear": (
            "png",
            of_array(RGB, transparency=tuple(map(int, RGB[2, 3]))),
            np.where((RGB[2, 3] == RGB).all(2)[..., None], 255, RGB),
            0,
        ),
        "grey with alpha": (
            "png",
            file_of(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])),
            on_white(three(GREY), ALPHA),
            1,
        ),
        "colours with alpha": ("png", of_array(np.dstack([RGB, ALPHA])), on_white(RGB, ALPHA), 1),
        "webp with alpha": (
            "webp",
            of_array(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
            on_white(RGB, ALPHA),
            1,
        ),
        "cmyk tiff": ("tiff", file_of(cmyk, "TIFF"), plain, 1),
        "cmyk jpeg, inverted as Adobe's": (
            "jpg",
            file_of(cmyk, "JPEG", quality=100, subsampling=0),
            plain,
            6,
        ),
        "first frame of an animation": (
            "png",
            of_array(RGB, save_all=True, append_images=[Image.fromarray(255 - RGB)]),
            RGB,
            0,
        ),
        "first frame of a gif that is clear": (
            "webp",  # by its content it is what it is
            file_of(palette, "GIF", transparency=5),
            np.where((index == 5)[..., None], 255, shown),
            0,
        ),
        "turned by a text of xmp": ("png", _with_xmp(EXIF_TURNS[6](RGB), 6), RGB, 0),
    }
    for orientation, turn in EXIF_TURNS.items():
        order = "<>"[orientation % 2]
        stored, tags = turn(RGB), exif(orientation, order)
        found |= {
            f"turned {orientation} png": ("png", of_array(stored, exif=tags), RGB, 0),
            f"turned {orientation} jpeg": (
                "jpg",
                of_array(stored, "JPEG", exif=tags, quality=100, subsampling=0),
                RGB,
                8,
            ),
            f"turned {orientation} webp": (
                "webp",
                of_array(stored, "WEBP", exif=tags, lossless=True),
                RGB,
                0,
            ),
            f"turned {orientation} tiff": (
                "tiff",
                of_array(stored, "TIFF", tiffinfo={0x0112: orientation}),
                RGB,
                0,
            ),
        }
    return found


def _with_xmp(pixels: Array, orientation: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    return of_array(pixels, pnginfo=text)


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_every_reader_sees_the_same(name: str, tmp_path: Path) -> None:
    suffix, data, wanted, rounding = CASES[name]
    path = tmp_path / "set" / "class" / f"a.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, f"a.{suffix}", data)
        add(archive, "a.cls", b"0")
    folder = open_data(tmp_path / "set", split="val")
    write_pixels(folder, tmp_path / "shards", size=SIDE)
    found = {
        "predict": open_upright(path),
        "folder": folder.picture(0),
        "tar": open_data(tmp_path / "a.tar", split="val").picture(0),
        "shards": open_data(tmp_path / "shards", split="val").picture(0),
        "pillow": decoder("pillow")("a", data),
    }
    seen = {reader: np.asarray(picture).astype(int) for reader, picture in found.items()}
    for transform in (
        evaluation_transform(size=SIDE, resize=SIDE),
        training_transform(size=SIDE, crop="shift", shift=0, flip=False),
    ):
        loader = Loader(folder, transform=transform, batch_size=1)
        seen[type(transform).__name__] = next(loader.epoch(0)).images[0].astype(int)
    for reader, pixels in seen.items():
        assert pixels.shape == (SIDE, SIDE, 3), reader
        assert np.abs(pixels - wanted).max() <= rounding, reader
        np.testing.assert_array_equal(pixels, seen["folder"])
    luma = np.asarray(decoder(channels=1)("a", data)).astype(int)
    assert np.abs(luma - seen["folder"] @ (0.299, 0.587, 0.114)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_pictures_are_read_and_enlarged(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "set" / "class").mkdir(parents=True)
    path = tmp_path / "set" / "class" / "a.png"
    path.write_bytes(file_of(Image.new("RGB", size, (200, 40, 90)), kind))
    source = open_data(tmp_path / "set", split="val")
    assert open_upright(path).size == source.picture(0).size == size
    loader = Loader(source, transform=evaluation_transform(size=SIDE), batch_size=1)
    pixels = next(loader.epoch(0)).images
    assert pixels.shape == (1, SIDE, SIDE, 3)
    assert np.abs(pixels.astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize(
    "name", ["sixteen-bit grey", "palette", "colours with alpha", "turned 6 jpeg"]
)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_what_is_cut_off_is_refused_by_all(name: str, part: float, tmp_path: Path) -> None:
    _, data, _, _ = CASES[name]
    path = tmp_path / "a.png"
    path.write_bytes(data[: int(part * len(data))])
    refused = r"a\.png: (not a picture|the picture is damaged)"
    with pytest.raises(ImageError, match=refused):
        open_upright(path)
    for reader in ("auto", "pillow"):
        with pytest.raises(ImageError, match=refused):
            decoder(reader)("a.png", path.read_bytes())


@pytest.mark.parametrize(
    "tags",
    [
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0XX*\0\x08\0\0\0",
        exif(0),
        exif(9),
        exif(65535),
        exif(6)[:-9],
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own
def test_damaged_tags_turn_nothing(tags: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = of_array(RGB[:, :12], kind, exif=tags)
        for name in ("auto", "pillow"):
            assert decoder(name)("a", data).size == (12, SIDE)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70_000]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0, np.nan]], np.float32),
        np.array([[1e9]], np.float32),
    ],
)
def test_numbers_of_no_known_scale_are_refused(values: Array) -> None:
    with pytest.raises(ImageError, match="nobody can tell which of its numbers is white"):
        decoder()("a.tiff", of_array(values, "TIFF"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")
@pytest.mark.parametrize("target", ["fifo", "/dev/zero", "itself"])
def test_a_name_that_is_no_files_is_refused_at_once(target: str, tmp_path: Path) -> None:
    path = tmp_path / "class" / "itself"
    path.parent.mkdir()
    if target == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises((ImageError, OSError), match=r"a FIFO|a device|Too many levels"):
        open_upright(path)
