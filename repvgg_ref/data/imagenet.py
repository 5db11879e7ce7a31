"""ImageNet's 1000 classes in the order of every published network. Source: README.md beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from repvgg_ref.models.graph import Network

CLASSES_PATH = Path(__file__).with_name("imagenet-classes.txt")


@cache
def imagenet_classes() -> dict[str, str]:
    """WordNet's number (``n01440764``) -> English name (``tench``), in the order of the logits.

    No two names are the same.
    """
    lines = CLASSES_PATH.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def imagenet_place(name: str) -> int | None:
    """The logit of the class with this WordNet number or English name; None if it has none."""
    return _places().get(name.lower().replace("_", " "))


def is_imagenet(arch: Network) -> bool:
    """Whether a network that names no classes is taken for one of ImageNet: 1000 of colours."""
    return arch.num_classes == 1000 and arch.in_channels == 3


@cache
def _places() -> dict[str, int]:
    both = enumerate(imagenet_classes().items())
    return {word.lower(): place for place, words in both for word in words}
