"""How often a network is right: top-1, top-5, and how well so many images tell."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array

Z95 = 1.959963984540054  # a normal variable lies within so many deviations in 95 of 100 cases


class Hits(NamedTuple):
    """Of `images`, how many had their class first, and among the first five."""

    images: int = 0
    top1: int = 0
    top5: int = 0

    def __or__(self, more: Hits) -> Hits:
        """Those of both."""
        return Hits(*(a + b for a, b in zip(self, more, strict=True)))


def hits(logits: Array, labels: Array) -> Hits:
    """Count the images whose label is among the largest logits.

    Equal logits count in the order of the classes, so a network that says the same of every class
    is right about one of them, not about all; a NaN is never right, and is ahead of every number.

    Parameters
    ----------
    logits : array, shape (N, num_classes)
    labels : int array, shape (N,)
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    place = ahead.sum(axis=1)
    return Hits(len(labels), int((place < 1).sum()), int((place < 5).sum()))


def wilson_interval(right: int, images: int, *, z: float = Z95) -> tuple[float, float]:
    """Where the true rate lies, as parts of 1, at 95 % confidence.

    The score interval of Wilson, JASA 22 (1927), 209-212: unlike the rate plus or minus some
    deviations it never leaves 0 ... 1 and is not empty at 0 or all hits.
    """
    if images == 0:
        return 0.0, 1.0
    rate, spread = right / images, z * z / images
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / images + spread / (4 * images))
    # At none or all right an end is 0 or 1 but for rounding.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    return low, 1.0 if right == images else min(1.0, centre + half)
