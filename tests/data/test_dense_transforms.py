"""Joint augmentations against their definitions: the same geometry for image and labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from repvgg_ref.data import dense_transforms as made
from repvgg_ref.data.dense import IGNORED, labelled, parted
from repvgg_ref.data.dense_transforms import (
    MEAN_COLOUR,
    DenseEvaluationTransform,
    DenseTrainingTransform,
)
from repvgg_ref.data.order import stream


def marked(height: int = 23, width: int = 31) -> Image.Image:
    """Labels are a function of the image's colour, as long as it is not mixed."""
    tones = np.random.default_rng(0).integers(0, 12, (height, width))
    image = np.stack([tones * 20] * 3, -1).astype(np.uint8)
    return labelled(Image.fromarray(image), tones)


def bands(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    image, labels = parted(picture)
    return np.asarray(image), np.asarray(labels)


def linear(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Interpolated between the middles of pixels, replicated beyond the outermost."""
    height, width = image.shape[:2]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def at(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        pixels: np.ndarray = image[i.clip(0, height - 1), j.clip(0, width - 1)].astype(float)
        return pixels

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    found: np.ndarray = upper * (1 - down) + lower * down
    return found


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.4, 2.0])
def test_scaling_is_opencvs_linear_and_the_nearest_label(factor: float) -> None:
    picture = marked()
    image, labels = bands(picture)
    found, found_labels = bands(made.scaled(picture, factor))
    height, width = (math.ceil(n * factor - 0.5) for n in labels.shape)
    assert found.shape == (height, width, 3)
    rows, columns = np.mgrid[:height, :width]
    y, x = (rows + 0.5) / factor - 0.5, (columns + 0.5) / factor - 0.5
    assert ((y + 0.5 < labels.shape[0]) & (x + 0.5 < labels.shape[1])).all()  # nothing to fill
    assert np.abs(found - linear(image, y, x)).max() <= 1.01
    near = labels[
        np.floor(y + 0.5).astype(int).clip(0, labels.shape[0] - 1),
        np.floor(x + 0.5).astype(int).clip(0, labels.shape[1] - 1),
    ]
    np.testing.assert_array_equal(found_labels, near)


def test_a_scale_that_ends_on_half_a_pixel_adds_nothing() -> None:
    picture = marked(23, 31)
    found, labels = bands(made.scaled(picture, 1.5))
    assert labels.shape == (34, 46)
    assert (labels != IGNORED).all()
    assert (found[-1] != MEAN_COLOUR).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("degrees", [-10.0, 4.0, 90.0])
def test_rotation_turns_both_and_fills_with_what_does_not_count(degrees: float) -> None:
    picture = marked(31, 31)
    image, labels = bands(picture)
    found, found_labels = bands(made.rotated(picture, degrees))
    rows, columns = np.mgrid[:31, :31]
    angle = np.deg2rad(degrees)
    dy, dx = rows - 15.0, columns - 15.0
    y = 15 + np.cos(angle) * dy + np.sin(angle) * dx
    x = 15 - np.sin(angle) * dy + np.cos(angle) * dx
    # counter-clockwise, rows counted downwards
    outside = (y < -0.51) | (y > 30.51) | (x < -0.51) | (x > 30.51)
    inside = (y > -0.49) & (y < 30.49) & (x > -0.49) & (x < 30.49)
    assert (found_labels[outside] == IGNORED).all()
    assert (found[outside] == MEAN_COLOUR).all()
    assert np.abs(found - linear(image, y, x))[inside].max() <= 1.01
    clear = inside & (np.abs(y % 1 - 0.5) > 1e-6) & (np.abs(x % 1 - 0.5) > 1e-6)
    near = labels[np.rint(y).astype(int).clip(0, 30), np.rint(x).astype(int).clip(0, 30)]
    np.testing.assert_array_equal(found_labels[clear], near[clear])


def test_the_blur_is_a_gaussian_of_five_and_leaves_labels() -> None:
    picture = marked()
    image, labels = bands(picture)
    found, found_labels = bands(made.blurred(picture))
    np.testing.assert_array_equal(found_labels, labels)
    line = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(line, line)
    long = np.pad(image.astype(float), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    wanted = np.zeros(image.shape)
    for i, j in np.ndindex(5, 5):
        wanted += kernel[i, j] * long[i : i + image.shape[0], j : j + image.shape[1]]
    assert np.abs(found - wanted).max() <= 0.51
    pillows = np.asarray(
        Image.fromarray(image).filter(ImageFilter.Kernel((5, 5), list(kernel.ravel())))
    )
    inner = (slice(2, -2), slice(2, -2))  # Pillow leaves the border as it is
    assert np.abs(found[inner].astype(int) - pillows[inner]).max() <= 1


def test_small_pictures_are_padded_in_the_middle() -> None:
    found, labels = bands(made.padded(marked(5, 9), 11, 7))
    assert labels.shape == (11, 9)
    assert (labels[:3] == IGNORED).all()
    assert (labels[8:] == IGNORED).all()
    assert (found[0] == MEAN_COLOUR).all()
    np.testing.assert_array_equal(labels[3:8], bands(marked(5, 9))[1])


def test_image_and_labels_go_the_same_way() -> None:
    """Without interpolation every pixel's label still is the function of its colour."""
    seen = DenseTrainingTransform(25, scales=(1.0, 1.0), rotate=0.0, blur=0.0)
    for number in range(20):
        found = seen(marked(), stream(0, 0, number))
        counted = found[..., 3] != IGNORED
        np.testing.assert_array_equal(found[counted][:, 0], found[counted][:, 3] * 20)
        assert (found[~counted][:, :3] == MEAN_COLOUR).all()


def test_the_order_is_scale_rotation_blur_mirror_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("scaled", "rotated", "blurred", "randomly_cropped"):

        def noted(*args: object, name: str = name, old: object = getattr(made, name)) -> object:
            done.append(name)
            return old(*args)  # type: ignore[operator]

        monkeypatch.setattr(made, name, noted)
    mirror = ImageOps.mirror

    def mirrored(picture: Image.Image) -> Image.Image:
        done.append("mirror")
        return mirror(picture)

    monkeypatch.setattr(ImageOps, "mirror", mirrored)
    DenseTrainingTransform(17, rotate=1.0, blur=1.0, flip=1.0)(marked(), stream(0, 0, 1))
    assert done == ["scaled", "rotated", "blurred", "mirror", "randomly_cropped"]


def test_the_same_stream_gives_the_same_crop_and_another_another() -> None:
    seen = DenseTrainingTransform(17)
    first, again, other = (seen(marked(), stream(0, 0, n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_evaluation_takes_the_middle() -> None:
    found = DenseEvaluationTransform(17)(marked())
    np.testing.assert_array_equal(found[..., 3], bands(marked())[1][3:20, 7:24])
