"""Pictures of any size: windows, padding, mirrors; and what is drawn of the result."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.data.overlay import confusion_picture, overlay, palette, shares
from repvgg_ref.data.windows import fitting, probabilities, window_of, windows
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.about import About
from repvgg_ref.models.network import Model
from tests.models.segmenters import small_model


@pytest.mark.parametrize(
    ("height", "width", "size"), [(1024, 2048, 713), (713, 713, 713), (90, 41, 41)]
)
def test_windows_cover_the_picture_and_overlap_by_a_third(
    height: int, width: int, size: int
) -> None:
    seen = np.zeros((height, width), int)
    found = list(windows(height, width, size))
    for part in found:
        assert seen[part.pixels].shape == (size, size)
        seen[part.pixels] += 1
    assert seen.min() >= 1
    step = math.ceil(2 * size / 3)
    lines = sorted({part.top for part in found}), sorted({part.left for part in found})
    for starts in lines:
        steps = [b - a for a, b in pairwise(starts)]
        assert all(each == step for each in steps[:-1])
        assert all(each <= step for each in steps)


def picture(height: int, width: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def of_place(x: Array) -> Array:
    """Logits of two classes that hang on each pixel's own colour alone."""
    return np.stack([x[:, 0], x[:, 1] - x[:, 2]], axis=1)


@pytest.mark.parametrize(("height", "width"), [(20, 70), (33, 33), (41, 90), (5, 7)])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_what_a_pixel_alone_decides_survives_windows_padding_and_mirrors(
    height: int, width: int, whole: bool, flip: bool
) -> None:
    pixels = picture(height, width)
    sizes = list[tuple[int, ...]]()

    def forward(x: Array) -> Array:
        sizes.append(x.shape[2:])
        return of_place(x)

    found = probabilities(pixels, forward, size=33, flip=flip, whole=whole)
    wanted = np.exp(of_place(_standard(pixels)))
    wanted /= wanted.sum(1, keepdims=True)
    assert found.shape == (2, height, width)
    assert np.abs(found - wanted[0]).max() <= 1e-5
    assert all(n % 8 == 1 for size in sizes for n in size)
    if not whole:
        assert set(sizes) == {(33, 33)}


def _standard(pixels: Array) -> Array:
    from repvgg_ref.data.source import IMAGENET_RGB

    return IMAGENET_RGB(pixels[None])


def test_a_network_takes_a_picture_of_any_size() -> None:
    model: Model = small_model(dtype=np.float32)
    found = probabilities(picture(30, 45), model.forward, size=65, flip=False, whole=True)
    assert found.shape == (5, 30, 45)
    assert np.abs(found.sum(0) - 1).max() <= 1e-5
    assert [fitting(n) for n in (1, 2, 9, 10, 713)] == [1, 9, 9, 17, 713]


def test_the_window_is_what_the_file_says_or_713() -> None:
    assert window_of(About()) == 713
    assert window_of(About(input_size=(129, 129))) == 129
    with pytest.raises(ShapeError, match=r"8k \+ 1 .got 100 ; wanted such as 105"):
        window_of(About(), 100)


def test_an_overlay_has_the_picture_and_a_legend_of_what_occurs() -> None:
    names = ("road", "car", "something else")
    classes = np.zeros((40, 50), int)
    classes[:10] = 2
    sheet = overlay(picture(40, 50), classes, names)
    assert sheet.height >= 40
    assert sheet.width > 50
    assert palette(names)[:2] == [(128, 64, 128), (0, 0, 142)]
    assert shares(classes, 3) == [(0, 0.75), (2, 0.25)]
    legend = np.asarray(sheet)[:, 50:].reshape(-1, 3)
    for number, there in ((0, True), (1, False), (2, True)):
        assert bool((legend == palette(names)[number]).all(1).any()) is there
    shown = np.asarray(sheet)[20, :50].astype(int)
    mixed = 0.45 * picture(40, 50)[20] + 0.55 * np.array(palette(names)[0])
    assert np.abs(shown - mixed).max() <= 1


def test_a_confusion_is_drawn_darkest_where_most_are_taken() -> None:
    counts = np.array([[9, 1], [0, 5]])
    drawn = np.asarray(confusion_picture(counts, ("sky", "road"))).astype(int)
    right = drawn[-12, -12]  # a corner of the last cell, all of whose row is right
    assert right.tolist() == [0, 0, 255]
