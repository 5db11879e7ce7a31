"""How often a network is right about pixels: intersections over unions, from one table of counts.

Everything follows from the confusion matrix, summed over the data set: ``counts[a, b]`` pixels of
class a were taken for class b. Pixels labelled 255 are in no row and no column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.models.arguments import as_array, require_counts
from repvgg_ref.models.dense import IGNORED


class PixelScore(NamedTuple):
    """Means over pixels that count; `top1` is the part of them that is right (allAcc).

    `miou` and `macc` are means over the classes that occur.
    """

    loss: float
    top1: float
    miou: float
    macc: float

    @property
    def headline(self) -> tuple[str, float]:
        """What people ask for."""
        return "mIoU", self.miou


@dataclass(frozen=True)
class PixelTally:
    """Of `images`, how pixels were taken, and the sum of their losses."""

    images: int
    loss: float
    counts: Array  # (classes, classes)

    @staticmethod
    def empty(classes: int) -> PixelTally:
        """That of no image."""
        return PixelTally(0, 0.0, np.zeros((classes, classes), np.int64))

    def __or__(self, more: PixelTally) -> PixelTally:
        """That of both."""
        return PixelTally(
            self.images + more.images, self.loss + more.loss, self.counts + more.counts
        )

    def vector(self) -> list[float]:
        """Its numbers, to be added up over ranks."""
        return [self.images, self.loss, *map(float, self.counts.ravel())]

    def of_vector(self, numbers: Sequence[float]) -> PixelTally:
        """The tally of such numbers."""
        counts = np.rint(numbers[2:]).astype(np.int64).reshape(self.counts.shape)
        return PixelTally(int(numbers[0]), numbers[1], counts)

    @property
    def score(self) -> PixelScore:
        """The means; raises `DataError` if no pixel counts."""
        pixels = int(self.counts.sum())
        if not pixels:
            raise DataError(
                "there is no labelled pixel to evaluate on",
                got=f"{self.images} images all of whose labels are {IGNORED}",
            )
        found, loss = scores_of(self.counts), self.loss / pixels
        return PixelScore(loss, found["allacc"], found["miou"], found["macc"])


def pixel_tally(logits: Array, labels: Array) -> PixelTally:
    """Count the pixels of logits (N, classes, H, W), and add up their cross-entropy.

    The first of several largest logits is taken; one that is not a number is right nowhere.
    """
    counted = labels != IGNORED
    wide = np.moveaxis(logits, 1, -1)[counted].astype(np.float64)  # (pixels, classes)
    own = labels[counted].astype(np.int64)
    wide = wide - wide.max(axis=1, keepdims=True, initial=-np.inf)
    right = wide[np.arange(len(own)), own]
    loss = float((np.log(np.exp(wide).sum(axis=1)) - right).sum())
    taken = np.where(np.isnan(wide).any(axis=1), (own + 1) % logits.shape[1], wide.argmax(axis=1))
    return PixelTally(len(logits), loss, confusion(taken, own, logits.shape[1]))


def confusion(predictions: Array, labels: Array, classes: int) -> Array:
    """The counts (classes, classes) of labels and predictions in range, 255 left out of both."""
    counted = labels != IGNORED
    pairs = labels[counted].astype(np.int64) * classes + predictions[counted].astype(np.int64)
    found: Array = np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)
    return found


def scores_of(counts: Array) -> dict[str, Any]:
    """``miou``, ``macc``, ``allacc`` and ``iou``, a number a class.

    Of class c, ``iou = counts[c, c] / (labelled + predicted - counts[c, c])``. A class that is
    neither labelled nor predicted has none, and is left out of the mean; one that is not labelled
    has no part in ``macc``. Where no pixel counts at all, all of them are None.
    """
    both = np.diag(counts).astype(np.float64)
    labelled, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = labelled + predicted - both
    iou = [float(b / u) if u else None for b, u in zip(both, union, strict=True)]
    recalls = [float(b / n) for b, n in zip(both, labelled, strict=True) if n]
    total = int(counts.sum())
    return {
        "miou": _mean([each for each in iou if each is not None]),
        "macc": _mean(recalls),
        "allacc": float(both.sum() / total) if total else None,
        "iou": iou,
    }


def segmentation_scores(predictions: Any, labels: Any, num_classes: int) -> dict[str, Any]:
    """How well `predictions` say the classes of pixels, over all images together.

    Parameters
    ----------
    predictions, labels : int arrays of one shape, or sequences of such arrays
        Classes from 0 on; where the label is 255 neither counts.
    num_classes : int

    Returns
    -------
    dict
        ``{"miou", "macc", "allacc", "iou": [...]}``: parts of 1. ``iou`` is None for a class that
        is neither labelled nor predicted, which the mean leaves out; where no pixel is labelled
        all are None.

    Raises
    ------
    ShapeError
        If the shapes differ, or there is no class.
    ReportedError
        If there is a label or prediction out of range.
    """
    require_counts(num_classes=num_classes)
    pairs = _pairs(predictions, labels)
    counts = np.zeros((num_classes, num_classes), np.int64)
    for predicted, truth in pairs:
        counted = truth != IGNORED
        _require_classes("labels", truth[counted], num_classes)
        _require_classes("predictions", predicted[counted], num_classes)
        counts += confusion(predicted, truth, num_classes)
    return scores_of(counts)


def _pairs(predictions: Any, labels: Any) -> list[tuple[Array, Array]]:
    sequences = [
        list(each) if isinstance(each, list | tuple) else [each] for each in (predictions, labels)
    ]
    if len(sequences[0]) != len(sequences[1]):
        raise ShapeError(
            "segmentation_scores: not as many predictions as labels",
            got=f"{len(sequences[0])} and {len(sequences[1])}",
        )
    found = []
    for predicted, truth in zip(*sequences, strict=True):
        pair = as_array(predicted, "predictions"), as_array(truth, "labels")
        if pair[0].shape != pair[1].shape:
            raise ShapeError(
                "segmentation_scores: predictions of another shape than labels",
                got=pair[0].shape,
                wanted=pair[1].shape,
            )
        found.append(pair)
    return found


def _require_classes(what: str, values: Array, classes: int) -> None:
    if values.dtype.kind not in "iu":
        raise ReportedError(f"segmentation_scores: {what} must be integers", got=values.dtype)
    wrong = values[(values < 0) | (values >= classes)]
    if wrong.size:
        raise ReportedError(
            f"segmentation_scores: {what} out of range",
            got=int(wrong[0]),
            wanted=f"0 ... {classes - 1}, or {IGNORED} in labels for what does not count",
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
