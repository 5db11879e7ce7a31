"""The names of ImageNet's classes, in the order of the logits of every published network."""

from __future__ import annotations

import pytest

from repvgg_ref.data.imagenet import imagenet_classes, imagenet_place


def test_a_thousand_different_names_in_wordnets_order() -> None:
    numbers, names = zip(*imagenet_classes().items(), strict=True)
    assert len(set(numbers)) == len(set(names)) == 1000
    assert list(numbers) == sorted(numbers)
    assert all(len(number) == 9 and number[0] == "n" and number[1:].isdigit() for number in numbers)


@pytest.mark.parametrize(
    ("place", "number", "name"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane bird"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (517, "n03126707", "crane"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_a_class_is_found_by_number_and_by_name(place: int, number: str, name: str) -> None:
    assert list(imagenet_classes().items())[place] == (number, name)
    for called in (number, name, name.title(), name.replace(" ", "_")):
        assert imagenet_place(called) == place
    assert imagenet_place("my cat") is None


def test_torchvision_has_the_same_names() -> None:
    meta = pytest.importorskip("torchvision.models._meta", reason="needs torchvision")
    assert list(imagenet_classes().values()) == meta._IMAGENET_CATEGORIES
