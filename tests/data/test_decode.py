"""Decoding: torchvision's colours, the same pixels from either library, hostile files refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.data import decode as decode_module
from repvgg_ref.data.decode import Decode, decoder
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import MissingExtraError, ReportedError
from tests.data.datasets import encoded
from tests.data.pictures import drawn


def both() -> list[Decode]:
    pytest.importorskip("simplejpeg", reason="the extra 'jpeg' is not installed")
    return [decoder("pillow"), decoder("simplejpeg")]


@pytest.mark.parametrize("subsampling", [0, 1, 2])  # 4:4:4, 4:2:2, 4:2:0
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_libraries_give_the_same_pixels(
    subsampling: int, quality: int, progressive: bool
) -> None:
    """They carry the same release of libjpeg-turbo here; see the module's docstring."""
    for size in ((500, 375), (33, 17), (8, 8), (1, 1)):
        data = encoded(
            drawn(*size), quality=quality, subsampling=subsampling, progressive=progressive
        )
        left, right = (np.asarray(decode("a.jpg", data)) for decode in both())
        difference = np.abs(left.astype(int) - right).max()
        assert difference <= 1, "another release of libjpeg-turbo rounds the last bit its own way"


def test_grey_and_cmyk_files_become_rgb_or_grey_by_either_library() -> None:
    grey, cmyk = drawn(40, 30, grey=True), drawn(40, 30).convert("CMYK")
    for picture in (grey, cmyk):
        data = encoded(picture, quality=95)
        plain = Image.open(io.BytesIO(data))
        for name in ("pillow", "auto"):
            rgb, luma = decoder(name)("a.jpg", data), decoder(name, channels=1)("a.jpg", data)
            assert (rgb.mode, luma.mode) == ("RGB", "L")
            np.testing.assert_array_equal(np.asarray(rgb), np.asarray(plain.convert("RGB")))
            np.testing.assert_array_equal(np.asarray(luma), np.asarray(rgb.convert("L")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_mode_becomes_what_convert_makes_of_it(mode: str) -> None:
    data = encoded(drawn(20, 14).convert(mode), "PNG")
    found = decoder()("a.png", data)
    wanted = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("name", ["pillow", "auto"])
def test_broken_files_are_image_errors_with_their_name(name: str) -> None:
    whole = encoded(drawn(64, 64), quality=90)
    broken = {
        "empty": b"",
        "text": b"no picture at all",
        "cut": whole[: len(whole) // 2],
        "head": whole[:3],
        "png": encoded(drawn(64, 64), "PNG")[:-200],
    }
    for title, data in broken.items():
        with pytest.raises(ImageError, match=rf"^dir/{title}: (not a picture|the picture is)"):
            decoder(name)(f"dir/{title}", data)


def test_bytes_changed_at_random_raise_nothing_but_image_errors() -> None:
    rng = np.random.default_rng(0)
    originals = [encoded(drawn(24, 20), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")]
    read = 0
    for number in range(400):
        data = bytearray(originals[number % len(originals)])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        for name in ("pillow", "auto"):
            try:
                assert decoder(name)("a", bytes(data)).mode == "RGB"
                read += 1
            except ImageError:
                pass
    assert 0 < read < 800


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    with pytest.raises(ImageError, match=r"bomb\.png: the picture is too large"):
        decoder()("bomb.png", bomb(side, side))
    jpeg = bytearray(encoded(drawn(16, 16)))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", side, side)
    for name in ("pillow", "auto"):
        with pytest.raises(ImageError, match=r"bomb\.jpg: the picture is too large"):
            decoder(name)("bomb.jpg", bytes(jpeg))


def test_without_simplejpeg_auto_is_pillow_and_asking_for_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode_module, "_simplejpeg", lambda: None)
    assert decoder("auto")("a.jpg", encoded(drawn(9, 8))).size == (9, 8)
    with pytest.raises(MissingExtraError, match=r"pip install .repvgg-ref\[jpeg\]"):
        decoder("simplejpeg")


def test_there_is_no_other_decoder() -> None:
    with pytest.raises(DataError, match=r"no such decoder .*wanted auto, pillow, simplejpeg"):
        decoder("opencv")
    assert issubclass(DataError, ReportedError)
