"""Pictures of every kind become the input that the validation of the paper used."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.data.images import eval_input, open_upright
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.data.source import IMAGENET_MEAN, IMAGENET_STD


def stripes(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)[None]
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return Image.fromarray(pixels)


def saved(image: Image.Image, path: Path, **options: object) -> Image.Image:
    image.save(path, **options)  # type: ignore[arg-type]
    return open_upright(path)


@pytest.mark.parametrize("extents", [(300, 400), (400, 300), (256, 256), (40, 90), (500, 257)])
@pytest.mark.parametrize("size", [224, 160])
def test_shorter_side_to_256_of_224_then_the_centre_then_mean_and_deviation(
    extents: tuple[int, int], size: int
) -> None:
    image = stripes(*extents)
    short = size * 256 // 224
    scale = short / min(extents)
    resized = image.resize(
        tuple(short if side == min(extents) else int(side * scale) for side in extents),  # type: ignore[arg-type]
        Image.Resampling.BILINEAR,
    )
    left, top = (round((side - size) / 2) for side in resized.size)
    pixels = np.asarray(resized)[top : top + size, left : left + size] / 255
    want = ((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None]
    x = eval_input(image, size=size)
    assert x.shape == (1, 3, size, size)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x, want, atol=1e-6)


def test_one_channel_sees_the_luma_of_three() -> None:
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    one, three = eval_input(grey, size=32, channels=1), eval_input(grey, size=32)
    weights = np.array([0.299, 0.587, 0.114])
    mean, std = np.array(IMAGENET_MEAN) @ weights, np.array(IMAGENET_STD) @ weights
    assert one.shape == (1, 1, 32, 32)
    np.testing.assert_allclose(one, (90 / 255 - mean) / std, rtol=1e-5)
    assert three.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channel_counts_have_no_standard_preparation(channels: int) -> None:
    with pytest.raises(ImageError, match=f"got {channels} input channels"):
        eval_input(stripes(32, 32), size=32, channels=channels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = "tiff" if mode in ("CMYK", "YCbCr") else "png"
    image = Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode)
    opened = saved(image, tmp_path / f"x.{suffix}")
    assert (opened.mode, opened.size) == ("RGB", (20, 10))
    assert (np.asarray(opened) == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 10, 257 * 100, 65535]], np.uint16)
    opened = saved(Image.fromarray(values), tmp_path / "x.png")
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 10, 100, 255]


def test_transparency_shows_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert np.asarray(saved(clear, tmp_path / "x.png")).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation: int, tmp_path: Path) -> None:
    upright = stripes(24, 16)
    stored = upright if orientation == 1 else upright.transpose(_inverse(orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = saved(stored, tmp_path / "x.png", exif=exif)
    assert opened.size == upright.size
    assert (np.asarray(opened) == np.asarray(upright)).all()


def _inverse(orientation: int) -> Image.Transpose:
    """How a camera stores an upright picture when it writes this tag (EXIF 2.3, table 6)."""
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    text, cut = tmp_path / "a.png", tmp_path / "b.jpg"
    text.write_text("no picture")
    stripes(200, 200).save(cut)
    cut.write_bytes(cut.read_bytes()[:700])
    with pytest.raises(ImageError, match=r"a\.png: not a picture"):
        open_upright(text)
    with pytest.raises(ImageError, match=r"b\.jpg: the picture is damaged"):
        open_upright(cut)
    with pytest.raises(FileNotFoundError):
        open_upright(tmp_path / "none.png")


def test_a_decompression_bomb_is_refused_and_a_large_picture_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    stripes(100, 100).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ImageError, match="too large"):
        open_upright(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_upright(path).size == (100, 100)
