"""Scores of pixels against their definitions, counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.train.pixels import PixelTally, pixel_tally


def drawn(seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (3, 5, 7))
    labels[rng.random(labels.shape) < 0.2] = 255
    return rng.integers(0, classes, labels.shape), labels


def test_scores_are_intersections_over_unions_of_all_images() -> None:
    predicted, labels = drawn(0)
    found = rr.segmentation_scores(predicted, labels, 4)
    counted = labels != 255
    iou, recall = [], []
    for c in range(4):
        both = ((predicted == c) & (labels == c)).sum()
        either = (((predicted == c) | (labels == c)) & counted).sum()
        iou.append(both / either)
        recall.append(both / (labels == c).sum())
    assert found["iou"] == pytest.approx(iou)
    assert found["miou"] == pytest.approx(np.mean(iou))
    assert found["macc"] == pytest.approx(np.mean(recall))
    assert found["allacc"] == pytest.approx((predicted == labels)[counted].mean())


def test_images_of_several_sizes_are_taken_together() -> None:
    predicted, labels = drawn(1)
    parts = [
        (p[: 3 + n], t[: 3 + n]) for n, (p, t) in enumerate(zip(predicted, labels, strict=True))
    ]
    found = rr.segmentation_scores([p for p, _ in parts], [t for _, t in parts], 4)
    flat, truth = (np.concatenate([each[n].ravel() for each in parts]) for n in (0, 1))
    assert found == rr.segmentation_scores(flat, truth, 4)


def test_a_class_that_nowhere_is_has_no_score_and_no_part_in_the_mean() -> None:
    found = rr.segmentation_scores(np.array([0, 1, 1]), np.array([0, 1, 255]), 3)
    assert found == {"miou": 1.0, "macc": 1.0, "allacc": 1.0, "iou": [1.0, 1.0, None]}


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ReportedError, match=r"labels out of range \(got 9"):
        rr.segmentation_scores(np.zeros(2, int), np.array([0, 9]), 3)
    with pytest.raises(ReportedError, match="predictions out of range"):
        rr.segmentation_scores(np.array([3, 0]), np.zeros(2, int), 3)
    with pytest.raises(ShapeError, match="another shape"):
        rr.segmentation_scores(np.zeros((2, 2), int), np.zeros((2, 3), int), 3)
    rr.segmentation_scores(np.array([200, 0]), np.array([255, 0]), 3)  # where nothing counts


def test_tallies_of_logits_add_up_and_travel_as_numbers() -> None:
    rng = np.random.default_rng(2)
    logits, (_, labels) = rng.normal(size=(3, 4, 5, 7)) * 3, drawn(2)
    whole = pixel_tally(logits, labels)
    parts = PixelTally.empty(4)
    for n in range(3):
        parts |= pixel_tally(logits[n : n + 1], labels[n : n + 1])
    np.testing.assert_array_equal(parts.counts, whole.counts)
    again = whole.of_vector(whole.vector())
    np.testing.assert_array_equal(again.counts, whole.counts)
    counted = labels != 255
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = np.take_along_axis(log, np.where(counted, labels, 0)[:, None], 1)[:, 0]
    assert whole.score.loss == pytest.approx(-own[counted].mean())
    wanted = rr.segmentation_scores(logits.argmax(1), labels, 4)
    assert whole.score.miou == pytest.approx(wanted["miou"])
    assert whole.score.top1 == pytest.approx(wanted["allacc"])


def test_a_logit_that_is_no_number_is_never_right() -> None:
    logits = np.zeros((1, 3, 1, 2))
    logits[0, 1, 0, 0] = np.nan
    found = pixel_tally(logits, np.array([[[0, 0]]]))
    assert found.counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
