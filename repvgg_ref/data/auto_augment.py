"""AutoAugment's published policies, and RandAugment.

Sources: Cubuk et al., "AutoAugment", arXiv 1805.09501, the tables of its appendix
("best policy found on" CIFAR-10, ImageNet); Cubuk et al., "RandAugment", arXiv 1909.13719,
section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from repvgg_ref.data.operations import SIGNED, apply, magnitude_at
from repvgg_ref.data.source import DataError

LEVELS = 10  # of AutoAugment
RANDAUGMENT_LEVELS = 31

# Operation, probability, level (of one without strength: any).
_Step = tuple[str, float, int]
SubPolicy = tuple[_Step, _Step]


def _read(table: str) -> tuple[SubPolicy, ...]:
    """One sub-policy a line: twice operation, probability in tenths, level."""
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(
        ((a, int(p) / 10, int(level)), (b, int(q) / 10, int(other)))
        for a, p, level, b, q, other in rows
    )


POLICIES: Mapping[str, tuple[SubPolicy, ...]] = {
    "imagenet": _read(
        """
        Posterize     4 8   Rotate        6 9
        Solarize      6 5   AutoContrast  6 0
        Equalize      8 0   Equalize      6 0
        Posterize     6 7   Posterize     6 6
        Equalize      4 0   Solarize      2 4
        Equalize      4 0   Rotate        8 8
        Solarize      6 3   Equalize      6 0
        Posterize     8 5   Equalize     10 0
        Rotate        2 3   Solarize      6 8
        Equalize      6 0   Posterize     4 6
        Rotate        8 8   Color         4 0
        Rotate        4 9   Equalize      6 0
        Equalize      0 0   Equalize      8 0
        Invert        6 0   Equalize     10 0
        Color         6 4   Contrast     10 8
        Rotate        8 8   Color        10 2
        Color         8 8   Solarize      8 7
        Sharpness     4 7   Invert        6 0
        ShearX        6 5   Equalize     10 0
        Color         4 0   Equalize      6 0
        Equalize      4 0   Solarize      2 4
        Solarize      6 5   AutoContrast  6 0
        Invert        6 0   Equalize     10 0
        Color         6 4   Contrast     10 8
        Equalize      8 0   Equalize      6 0
        """
    ),
    "cifar10": _read(
        """
        Invert        1 0   Contrast      2 6
        Rotate        7 2   TranslateX    3 9
        Sharpness     8 1   Sharpness     9 3
        ShearY        5 8   TranslateY    7 9
        AutoContrast  5 0   Equalize      9 0
        ShearY        2 7   Posterize     3 7
        Color         4 3   Brightness    6 7
        Sharpness     3 9   Brightness    7 9
        Equalize      6 0   Equalize      5 0
        Contrast      6 7   Sharpness     6 5
        Color         7 7   TranslateX    5 8
        Equalize      3 0   AutoContrast  4 0
        TranslateY    4 3   Sharpness     2 6
        Brightness    9 6   Color         2 8
        Solarize      5 2   Invert        0 0
        Equalize      2 0   AutoContrast  6 0
        Equalize      2 0   Equalize      6 0
        Color         9 9   Equalize      6 0
        AutoContrast  8 0   Solarize      2 8
        Brightness    1 3   Color         7 0
        Solarize      4 5   AutoContrast  9 0
        TranslateY    9 9   TranslateY    7 9
        AutoContrast  9 0   Solarize      8 3
        Equalize      8 0   Invert        1 0
        TranslateY    7 9   AutoContrast  9 0
        """
    ),
}

RANDAUGMENT_OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness"),
    *("Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 sub-policies, each of two operations that happen with their own probabilities."""

    policy: tuple[SubPolicy, ...]

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draw a sub-policy, whether its operations happen, and their signs."""
        chosen = self.policy[int(rng.integers(len(self.policy)))]
        draws, signs = rng.random(2), rng.integers(2, size=2)
        for (operation, probability, level), draw, sign in zip(chosen, draws, signs, strict=True):
            if draw <= probability:
                magnitude = magnitude_at(operation, level, levels=LEVELS, size=picture.size)
                negative = operation in SIGNED and sign == 0
                picture = apply(operation, picture, -magnitude if negative else magnitude)
        return picture


@dataclass(frozen=True)
class RandAugment:
    """`operations` of the 14, each as likely as any other and all at level `magnitude` of 31."""

    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if self.operations < 0 or not 0 <= self.magnitude < RANDAUGMENT_LEVELS:
            raise DataError(
                "RandAugment has no such strength",
                got=f"{self.operations} operations of magnitude {self.magnitude}",
                wanted=f"a magnitude of 0 ... {RANDAUGMENT_LEVELS - 1}",
            )

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draw the operations and their signs."""
        for _ in range(self.operations):
            drawn = int(rng.integers(len(RANDAUGMENT_OPERATIONS)))
            operation = RANDAUGMENT_OPERATIONS[drawn]
            magnitude = magnitude_at(
                operation, self.magnitude, levels=RANDAUGMENT_LEVELS, size=picture.size
            )
            negative = operation in SIGNED and rng.integers(2) == 1
            picture = apply(operation, picture, -magnitude if negative else magnitude)
        return picture
