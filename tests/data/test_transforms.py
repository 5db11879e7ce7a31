"""Laws of the transforms; that they are torchvision's is tested beside this."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from repvgg_ref.data import DataError, Standardise, evaluation_transform, training_transform
from repvgg_ref.data.auto_augment import POLICIES, AutoAugment, RandAugment
from repvgg_ref.data.images import eval_input, resize_shorter
from repvgg_ref.data.operations import SIGNED, apply, magnitude_at
from repvgg_ref.data.order import epoch_order, rank_slice, stream
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.data.source import IMAGENET_GREY, IMAGENET_RGB
from repvgg_ref.data.transforms import (
    TrainingTransform,
    random_resized_box,
    random_shifted_box,
)
from tests.data.pictures import drawn

SIDES = st.integers(1, 700)


@given(width=SIDES, height=SIDES, seed=st.integers(0, 2**32))
def test_every_drawn_box_lies_within_the_picture(width: int, height: int, seed: int) -> None:
    box = random_resized_box(width, height, np.random.default_rng(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height > 0
    assert box.width > 0


def test_boxes_cover_the_stated_areas_and_ratios() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_resized_box(500, 375, rng) for _ in range(4000)]
    areas = np.array([box.width * box.height for box in boxes]) / (500 * 375)
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.079 < areas.min() < 0.09
    assert areas.max() > 0.95
    assert 0.74 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < 1.35
    # Drawn evenly; those that did not fit (large, elongated ones) were drawn again.
    assert 0.4 < areas.mean() < 0.54
    places = np.array([box.left / max(1, 500 - box.width) for box in boxes])
    assert abs(places.mean() - 0.5) < 0.03


def test_every_shift_is_as_likely_as_any_other() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_shifted_box(8, 2, rng) for _ in range(5000)]
    for drawn_at in ([box.top for box in boxes], [box.left for box in boxes]):
        counts = np.bincount(drawn_at, minlength=5)
        assert len(counts) == 5
        assert (abs(counts - 1000) < 5 * np.sqrt(1000)).all()


def test_half_of_the_pictures_are_mirrored_and_nothing_else_happens() -> None:
    picture = drawn(32, 32)
    plain, mirrored = np.asarray(picture), np.asarray(ImageOps.mirror(picture))
    transform = training_transform(size=32, crop="shift", shift=0)
    flips = 0
    for seed in range(200):
        found = transform(picture, np.random.default_rng(seed))
        flipped = bool((found == mirrored).all())
        assert flipped or (found == plain).all()
        flips += flipped
    assert 70 < flips < 130
    straight = training_transform(size=32, crop="shift", shift=0, flip=False)
    for seed in range(20):
        np.testing.assert_array_equal(straight(picture, np.random.default_rng(seed)), plain)


@pytest.mark.parametrize("grey", [False, True])
def test_some_operations_undo_themselves(grey: bool) -> None:
    picture = drawn(31, 24, grey=grey)
    before = np.asarray(picture)
    for operation in ("Invert", "Identity"):
        np.testing.assert_array_equal(apply(operation, apply(operation, picture, 0), 0), before)
    for operation in SIGNED:
        np.testing.assert_array_equal(apply(operation, picture, 0.0), before)
    np.testing.assert_array_equal(apply("Posterize", picture, 8), before)
    np.testing.assert_array_equal(apply("Solarize", picture, 256.0), before)
    np.testing.assert_array_equal(apply("Solarize", picture, 0.0), 255 - before)
    moved = apply("TranslateY", apply("TranslateX", picture, 5.0), -3.0)
    np.testing.assert_array_equal(np.asarray(moved)[:-3, 5:], before[3:, :-5])
    np.testing.assert_array_equal(np.asarray(moved)[-3:], 0)


def test_strength_grows_from_nothing_with_the_level() -> None:
    for operation in SIGNED:
        found = [magnitude_at(operation, i, levels=31, size=(331, 662)) for i in range(31)]
        assert found[0] == 0
        assert found == sorted(found)
    assert magnitude_at("TranslateX", 30, levels=31, size=(331, 662)) == pytest.approx(150)
    assert magnitude_at("TranslateY", 30, levels=31, size=(331, 662)) == pytest.approx(300)
    assert [magnitude_at("Posterize", i, levels=10, size=(9, 9)) for i in (0, 9)] == [8, 4]
    assert [magnitude_at("Solarize", i, levels=10, size=(9, 9)) for i in (0, 9)] == [255, 0]


def test_every_sub_policy_and_operation_gets_its_turn() -> None:
    picture, rng = drawn(16, 16), np.random.default_rng(0)
    for augment in (AutoAugment(POLICIES["imagenet"]), RandAugment(2, 9)):
        looks = {np.asarray(augment(picture, rng)).tobytes() for _ in range(300)}
        assert len(looks) > 25


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (257, 600)])
def test_evaluation_gives_what_predict_sees(size: tuple[int, int]) -> None:
    picture = drawn(*size)
    transform = evaluation_transform(size=224)
    assert transform.resize == 256
    images = transform(picture)[None]
    # Multiplying by 1/255 or dividing by 255: 3 roundings of numbers up to 1, over a deviation of
    # 0.224, and one of the result: 3 / 0.224 + 2.7 units roundoff are 9.6e-7.
    difference = np.abs(IMAGENET_RGB(images) - eval_input(picture, size=224)).max()
    assert difference <= 1e-6


def test_a_standardised_picture_is_what_the_formula_says() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    for scale in (Standardise(1 / 255, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), IMAGENET_RGB):
        x = scale(images)
        exact = (images.astype(np.float64) * scale.scale - scale.mean) / scale.std
        assert (x.dtype.name, x.flags.c_contiguous) == ("float32", True)
        np.testing.assert_allclose(x, exact.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)
    assert IMAGENET_GREY.mean[0] == pytest.approx(0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406)


def test_grey_pictures_keep_their_one_channel() -> None:
    picture, rng = drawn(40, 30, grey=True), np.random.default_rng(0)
    for augment in ("autoaugment", "autoaugment-cifar10", "randaugment"):
        for _ in range(20):
            found = training_transform(size=16, auto_augment=augment)(picture, rng)
            assert (found.shape, found.dtype.name) == ((16, 16, 1), "uint8")
    assert evaluation_transform(size=16)(picture).shape == (16, 16, 1)


def test_a_picture_of_another_size_is_brought_to_it_before_it_is_shifted() -> None:
    transform = training_transform(size=32, crop="shift", shift=0, flip=False)
    found = transform(drawn(64, 48), np.random.default_rng(0))
    shorter = resize_shorter(drawn(64, 48), 32)
    np.testing.assert_array_equal(found, np.asarray(shorter)[:, 5:37])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"auto_augment": "auto"}, "no such auto_augment .*wanted none, autoaugment"),
        ({"crop": "centre"}, "no such crop"),
        ({"interpolation": "lanczos"}, "no such interpolation"),
        ({"scale": (0.0, 1.0)}, "no random crop"),
        ({"scale": (0.5, 0.2)}, "no random crop"),
        ({"ratio": (2.0, 1.0)}, "no random crop"),
        ({"shift": -1}, "no random crop"),
        ({"auto_augment": "randaugment", "magnitude": 31}, "no such strength"),
    ],
)
def test_impossible_recipes_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        training_transform(size=32, **settings)


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(DataError, match="size 224, resize 200"):
        evaluation_transform(size=224, resize=200)


def test_a_picture_that_would_grow_without_bound_is_an_unreadable_one() -> None:
    line = Image.new("RGB", (1, 50_000))
    with pytest.raises(ImageError, match=r"too narrow to be resized \(got 1 x 50000\)"):
        evaluation_transform(size=224)(line)
    assert training_transform(size=8)(line, np.random.default_rng(0)).shape == (8, 8, 3)
    assert evaluation_transform(size=1, resize=1)(line).shape == (1, 1, 3)


def test_training_transforms_are_values() -> None:
    """Two of the same settings are equal, so a test can tell what a recipe made."""
    assert training_transform(size=8) == training_transform(size=8)
    assert isinstance(training_transform(size=8), TrainingTransform)
    assert training_transform(size=8) != training_transform(size=8, flip=False)


def test_streams_are_apart_and_the_order_has_its_own() -> None:
    numbers = {
        (seed, epoch, index): stream(seed, epoch, index).random()
        for seed in (0, 1, 2**63)
        for epoch in (0, 1)
        for index in (0, 1, 2, 2**33)
    }
    assert len(set(numbers.values())) == len(numbers)
    assert stream(1, 1, 2).random() == numbers[1, 1, 2]


@given(count=st.integers(0, 100), ranks=st.integers(1, 9))
def test_slices_of_ranks_share_out_everything_in_order(count: int, ranks: int) -> None:
    parts = [range(count)[rank_slice(count, rank=r, ranks=ranks)] for r in range(ranks)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_numbers_behind_a_run_do_not_change_between_releases() -> None:
    """NumPy promises its bit generators, not its distributions: this says if a resume broke."""
    assert epoch_order(6, seed=1, epoch=2, shuffle=True).tolist() == FIRST_ORDER
    assert stream(1, 2, 3).random() == FIRST_NUMBER


FIRST_ORDER = [5, 0, 4, 2, 3, 1]
FIRST_NUMBER = 0.06344102965932141


def test_transforms_leave_the_picture_as_it_was() -> None:
    picture = drawn(60, 50)
    before = np.asarray(picture).copy()
    for augment in ("autoaugment", "autoaugment-cifar10", "randaugment"):
        for seed in range(10):
            training_transform(size=24, auto_augment=augment)(picture, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.asarray(picture), before)
    assert isinstance(picture, Image.Image)
