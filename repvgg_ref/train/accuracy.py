"""How often a network is right: loss, top-1, top-5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array


class Score(NamedTuple):
    """Means over some images; `top1` and `top5` are parts of 1."""

    loss: float
    top1: float
    top5: float

    @property
    def headline(self) -> tuple[str, float]:
        """What people ask for."""
        return "top-1", self.top1


class Tally(NamedTuple):
    """Of `images`, how many had their class first, and among the first five; summed losses."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    loss: float = 0.0

    def __or__(self, more: Tally) -> Tally:
        """That of both."""
        return Tally(
            self.images + more.images,
            self.top1 + more.top1,
            self.top5 + more.top5,
            self.loss + more.loss,
        )

    def vector(self) -> list[float]:
        """Its numbers, to be added up over ranks."""
        return list(self)

    def of_vector(self, numbers: Sequence[float]) -> Tally:
        """The tally of such numbers."""
        images, top1, top5, loss = numbers
        return Tally(int(images), int(top1), int(top5), loss)

    @property
    def score(self) -> Score:
        """The means; those of no image are 0."""
        images = max(1, self.images)
        return Score(self.loss / images, self.top1 / images, self.top5 / images)


def tally(logits: Array, labels: Array) -> Tally:
    """Count the images whose label is among the largest logits, and add up the cross-entropy.

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
    return Tally(
        len(labels), int((place < 1).sum()), int((place < 5).sum()), _summed_loss(logits, labels)
    )


def _summed_loss(logits: Array, labels: Array) -> float:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    own = wide[np.arange(len(labels)), labels]
    return float((np.log(np.exp(wide).sum(axis=1)) - own).sum())
