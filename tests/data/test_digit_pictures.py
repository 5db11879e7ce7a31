"""Digits in pictures of any kind are recorded as the bundled ones are, and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.digit_pictures import DigitPictureError, record
from repvgg_ref.data.digits import ABOUT, MODEL_PATH, image_to_input, sample_paths, to_input
from repvgg_ref.data.images import eval_input, network_input, open_upright
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.models.about import About
from repvgg_ref.models.network import Model
from tests.data.pen import written


def digit(number: int, *, pen: float = 0.1, side: int = 160) -> Image.Image:
    return written(number, hand="round", pen=pen, rng=np.random.default_rng(7), side=side)


def inverted(image: Image.Image) -> Image.Image:
    return Image.eval(image, lambda level: 255 - level)


def on_sheet(image: Image.Image, at: tuple[int, int]) -> Image.Image:
    """The digit, dark, on a large grey-lit sheet: half as light on the right as on the left."""
    sheet = Image.new("L", (400, 280))
    sheet.paste(image, at)
    light = np.linspace(240, 120, 400) * (1 - 0.8 * np.asarray(sheet, np.float64) / 255)
    return Image.fromarray(light.astype(np.uint8))


def apart(one: Array, other: Array) -> float:
    """The share of dots that differ."""
    return float(np.abs(one - other).sum() / 1024)


@pytest.fixture(scope="module")
def model() -> Model:
    return rr.fuse(rr.load(MODEL_PATH))


@pytest.mark.parametrize("path", sample_paths(), ids=lambda path: path.stem)
def test_what_is_recorded_already_is_only_made_small(path: Path) -> None:
    with Image.open(path) as image:
        found = record(image)
        assert found.done == ()
        assert np.array_equal(to_input(found.ink[None]), image_to_input(image))


@pytest.mark.parametrize("number", range(10))
def test_how_it_is_shown_changes_little(number: int) -> None:
    image = digit(number)
    wanted = record(image).ink
    assert 0 < wanted.mean() / 16 < 0.4
    assert wanted[0].any()
    assert wanted[-1].any()
    shown = {
        "dark on light": inverted(image),
        "in colours": Image.merge("RGB", [inverted(image)] * 2 + [Image.new("L", image.size, 255)]),
        "small": image.resize((64, 64), Image.Resampling.BOX),
        "in a corner": on_sheet(image, (200, 90)),
        "thin": digit(number, pen=0.05),
    }
    for how, picture in shown.items():
        assert apart(record(picture).ink, wanted) < 0.1, how
    assert np.array_equal(record(shown["dark on light"]).ink, wanted)


def test_what_was_done_is_said() -> None:
    image = digit(3)
    box = image.point(lambda level: 255 * (level > 127)).getbbox()
    assert box is not None
    inversion, crop, rest = record(inverted(image)).done
    assert inversion == "inverted"
    width, height = (int(part) for part in crop.split()[2:5:2])
    assert abs(width - (box[2] - box[0])) <= 4
    assert abs(height - (box[3] - box[1])) <= 4
    assert crop.endswith("of 160 x 160")
    assert rest == "straightened, scaled and centred"
    assert record(image).done == (crop, rest)


def test_written_digits_are_read_which_were_not(model: Model) -> None:
    pictures = [inverted(digit(number)) for number in range(10)]
    inks = np.stack([record(picture).ink for picture in pictures])
    before = np.concatenate([image_to_input(picture) for picture in pictures])
    read = [model.forward(x).argmax(axis=1) for x in (to_input(inks), before)]
    right = [int((found == np.arange(10)).sum()) for found in read]
    assert right[0] == 10
    assert right[1] <= 3


def test_specks_and_the_papers_edge_are_no_digit() -> None:
    image = inverted(digit(5))
    wanted = record(image).ink
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 159, 3), fill=0)
    pen.ellipse((12, 130, 14, 132), fill=0)
    assert apart(record(image).ink, wanted) < 0.02


def two() -> Image.Image:
    pair = Image.new("L", (320, 160))
    pair.paste(digit(4), (20, 0))
    pair.paste(digit(2), (140, 0))
    return inverted(pair)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (Image.new("L", (80, 80), 255), "no digit"),
        (Image.new("L", (80, 80), 0), "no digit"),
        (Image.new("L", (1, 1), 90), "no digit"),
        (on_sheet(Image.new("L", (9, 9)), (0, 0)), "no digit"),
        (two(), "more than one digit"),
    ],
    ids=["white", "black", "dot", "uneven light", "two"],
)
def test_what_holds_no_single_digit_is_refused(picture: Image.Image, said: str) -> None:
    with pytest.raises(DigitPictureError, match=rf"{said}.*wanted one digit"):
        record(picture)


def test_only_a_model_of_the_bundled_digits_has_its_pictures_changed(
    model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "seven.png"
    inverted(digit(7)).save(path)
    notes: list[str] = []
    x = network_input(path, model.arch, about=ABOUT, notes=notes)
    assert notes[0] == "inverted"
    assert np.array_equal(x, to_input(record(open_upright(path)).ink[None]))
    others = [About(mean=(0.5,), std=(0.2,)), About(classes=tuple("0123456789"))]
    for about in others:
        notes = []
        seen = network_input(path, model.arch, about=about, notes=notes)
        assert notes == []
        assert np.array_equal(seen, eval_input(open_upright(path), channels=1, about=about))
    unsaid = network_input(path, model.arch)  # a file of before they said what they are
    assert np.array_equal(unsaid, image_to_input(open_upright(path)))
    Image.new("L", (50, 50), 255).save(path)
    with pytest.raises(ImageError, match=r"seven\.png: there is no digit"):
        network_input(path, model.arch, about=ABOUT)
