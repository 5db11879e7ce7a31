"""Every transform against what torchvision did with the same picture and the same draws.

The file was written by torchvision itself: ``tests/peers/make_torchvision_fixture.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from PIL import __version__ as pillow

from repvgg_ref.data import evaluation_transform, training_transform
from repvgg_ref.data.auto_augment import POLICIES, RANDAUGMENT_OPERATIONS
from repvgg_ref.data.operations import SIGNED, apply, magnitude_at
from repvgg_ref.data.transforms import (
    INTERPOLATIONS,
    ResizedCrop,
    TrainingTransform,
    random_resized_box,
)
from tests.data.pictures import drawn

FIXTURE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "torchvision.json").read_text(encoding="utf-8")
)

same_pillow = pytest.mark.skipif(
    pillow.split(".")[0] != FIXTURE["pillow"].split(".")[0],
    reason=f"the file was made with Pillow {FIXTURE['pillow']}, whose pixels it holds",
)


def digest(pixels: np.ndarray[Any, Any] | Image.Image) -> str:
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:16]


class Replayed:
    """A generator that draws what torch drew."""

    def __init__(self, draws: Iterable[list[float]]) -> None:
        self.left = [number for draw in draws for number in draw]

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.left[0] <= high
        return self.left.pop(0)

    def integers(self, low: int, high: int | None = None, size: int = 1) -> Any:
        found = [int(self.left.pop(0)) for _ in range(size)]
        assert all(number < (low if high is None else high) for number in found)
        return found[0] if size == 1 else np.array(found)

    def random(self, size: int | None = None) -> Any:
        return (
            self.left.pop(0) if size is None else np.array([self.left.pop(0) for _ in range(size)])
        )


def replay(draws: Iterable[list[float]]) -> Any:
    return cast("np.random.Generator", Replayed(draws))


@same_pillow
def test_random_resized_crops_are_the_same_boxes_and_pixels() -> None:
    fallbacks = 0
    for case in FIXTURE["resized_crops"]:
        width, height = case["size"]
        rng = replay(case["draws"])
        assert list(random_resized_box(width, height, rng)) == case["box"]
        assert rng.left == []
        fallbacks += len(case["draws"]) == 20
        crop = ResizedCrop(64, interpolation=INTERPOLATIONS[case["interpolation"]])
        assert digest(crop(drawn(width, height), replay(case["draws"]))) == case["pixels"]
    assert 0 < fallbacks < len(FIXTURE["resized_crops"])  # both ways through were compared


@same_pillow
def test_shifts_are_padded_random_crops() -> None:
    for case in FIXTURE["shifts"]:
        shifted = training_transform(size=32, crop="shift", shift=4, flip=False)
        rng = replay([*case["draws"], [0.5]])
        assert digest(shifted(drawn(32, 32, seed=case["seed"]), rng)) == case["pixels"]


@same_pillow
def test_evaluation_is_resize_and_centre_crop() -> None:
    for case in FIXTURE["evaluations"]:
        transform = evaluation_transform(
            size=case["crop"], resize=case["resize"], interpolation=case["interpolation"]
        )
        assert digest(transform(drawn(*case["size"]))) == case["pixels"], case


def test_every_move_is_the_same_number_of_pixels() -> None:
    for case in FIXTURE["moves"]:
        levels, size = case["levels"], (case["side"], 1)
        found = [magnitude_at("TranslateX", i, levels=levels, size=size) for i in range(levels)]
        assert [int(pixels) for pixels in found] == case["pixels"], case


def test_every_magnitude_is_the_same_number_to_an_ulp_of_float32() -> None:
    for case in FIXTURE["operations"]:
        size = cast("tuple[int, int]", tuple(case["size"]))
        found = magnitude_at(case["operation"], case["level"], levels=case["levels"], size=size)
        assert abs(found - case["magnitude"]) <= np.spacing(np.float32(case["magnitude"])), case
        assert (case["operation"] in SIGNED) >= (case["sign"] < 0)


@same_pillow
def test_every_operation_gives_the_same_pixels() -> None:
    seen = set()
    for case in FIXTURE["operations"]:
        for grey, pixels in zip((False, True), case["pixels"], strict=True):
            picture = drawn(*case["size"], grey=grey)
            found = apply(case["operation"], picture, case["sign"] * case["magnitude"])
            assert digest(found) == pixels, case
        seen.add(case["operation"])
    assert seen == {*RANDAUGMENT_OPERATIONS, "Invert"}


def test_the_policies_are_the_published_ones() -> None:
    for name, table in FIXTURE["tables"].items():
        ours = [
            [[operation, probability, level] for operation, probability, level in pair]
            for pair in POLICIES[name]
        ]
        theirs = [
            [[op, p, 0 if level is None else level] for op, p, level in pair] for pair in table
        ]
        assert ours == theirs
        assert len(ours) == 25


@same_pillow
def test_whole_policies_give_the_same_pixels() -> None:
    changed = 0
    for case in FIXTURE["policies"]:
        transform = training_transform(size=64, auto_augment=case["method"])
        assert isinstance(transform, TrainingTransform)
        assert transform.augment is not None
        picture, rng = drawn(64, 48, seed=case["seed"]), replay(case["draws"])
        found = transform.augment(picture, rng)
        assert digest(found) == case["pixels"], case
        assert rng.left == []
        changed += digest(found) != digest(picture)
    assert changed > len(FIXTURE["policies"]) / 2
