"""The residual's pictures, looked at pixel by pixel."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.render.heatmap import Picture, ResidualPictures, residual_pictures
from tests.oracle.render.reports import INFINITY, NAN, residual

WHITE, BLUE, RED = (247, 247, 247), (33, 102, 172), (178, 24, 43)
CHEQUERS = {(255, 221, 0), (0, 0, 0)}


def pixels(picture: Picture) -> Array:
    prefix, _, data = picture.src.partition(",")
    assert prefix == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (picture.width, picture.height)
        return np.asarray(image)


def drawn(values: Array) -> ResidualPictures:
    found = residual_pictures(values)
    assert found is not None
    return found


def test_zero_is_white_and_the_extremes_are_the_ends_of_the_scale() -> None:
    r = np.zeros((1, 1, 2, 2))
    r[0, 0] = [[0.0, 0.5], [-0.5, 0.25]]
    tile = pixels(drawn(r).tiles[0])
    assert tuple(tile[0, 0]) == WHITE
    assert tuple(tile[0, 1]) == RED
    assert tuple(tile[1, 0]) == BLUE
    assert drawn(r).limit == 0.5


def test_nan_and_infinity_are_in_colours_that_no_number_has() -> None:
    r = np.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    numbers = {tuple(p) for p in pixels(drawn(r).tiles[0]).reshape(-1, 3)}
    assert not numbers & CHEQUERS
    r[0, 0, 3, 3:5], r[0, 0, 0, 0] = NAN, -INFINITY
    found = drawn(r)
    tile = pixels(found.tiles[0])
    assert {tuple(tile[3, 3]), tuple(tile[3, 4])} == CHEQUERS
    assert tuple(tile[0, 0]) in CHEQUERS
    assert found.not_finite == 3
    assert "3 values not finite" in found.tiles[0].caption


def test_the_worst_channels_come_first_each_in_its_worst_image() -> None:
    found = drawn(residual())
    assert found.tiles[0].caption.startswith("channel 7, image 1: 15 values not finite")
    assert found.tiles[1].caption.startswith("channel 5, image ")
    assert len(found.tiles) == 8
    assert found.shape == " \N{MULTIPLICATION SIGN} ".join(map(str, residual().shape))


def test_a_single_bad_pixel_survives_the_reduction_of_a_large_map() -> None:
    r = np.zeros((1, 2, 500, 300))
    r[0, 1, 321, 123], r[0, 0, 7, 7] = -1.0, NAN
    found = drawn(r)
    first, second = (pixels(tile) for tile in found.tiles)
    assert max(first.shape) <= 128
    assert sum(tuple(p) in CHEQUERS for p in first.reshape(-1, 3)) == 1
    assert sum(tuple(p) == BLUE for p in second.reshape(-1, 3)) == 1


def test_the_summaries_show_where_and_which_channel() -> None:
    r = np.zeros((2, 5, 6, 6))
    r[:, 3, 0, :] = 1.0
    where, which = (pixels(picture) for picture in drawn(r).summaries)
    assert (where[0] != where[1]).any()
    assert (where[1:] == where[1]).all()
    assert which.shape == (1, 5, 3)
    assert [int(column) for column in which[0].sum(axis=1).argsort()[:1]] == [3]


def test_logits_are_one_picture_with_a_row_an_image() -> None:
    found = drawn(np.arange(20.0).reshape(2, 10))
    assert found.tiles == ()
    assert (found.summaries[0].height, found.summaries[0].width) == (2, 10)


@pytest.mark.parametrize(
    "values",
    [
        np.full((1, 2, 3, 3), NAN),
        np.zeros((1, 1, 1, 1)),
        np.full((2, 3), INFINITY),
        np.full((1, 1, 2, 2), 1e308),
        np.full((1, 1, 2, 2), 5e-324),
        np.zeros((1, 1, 2, 2), np.float16),
    ],
)
def test_extreme_residuals_are_drawn_without_a_warning(values: Array) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = drawn(values)
    for picture in (*found.tiles, *found.summaries, found.legend, found.not_finite_swatch):
        pixels(picture)


@pytest.mark.parametrize("values", [None, np.zeros((2, 0, 3, 3)), np.zeros(3), np.zeros((1, 2, 3))])
def test_what_is_no_residual_has_no_picture(values: Array | None) -> None:
    assert residual_pictures(values) is None
