"""Cross-entropy: fifty decimal digits as witness, symmetries, smoothing as a mixture, gradients."""

from __future__ import annotations

import math
import re
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.errors import InexactError, ReportedError, ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_within, frozen


def batch(case: ImageCase) -> tuple[Array, Array, Array]:
    """Logits, integer labels, and soft targets that do not sum to one."""
    rng = np.random.default_rng(case.seed)
    N, classes = case.images, case.classes
    logits = case.scale * rng.standard_normal((N, classes))
    labels = rng.integers(0, classes, N)
    return frozen(logits), frozen(labels), frozen(rng.uniform(0, 1, (N, classes)))


def loss(ops: Ops, logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    return ops.softmax_cross_entropy_forward(logits, labels, label_smoothing=smoothing)[0]


def gradient(ops: Ops, logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    _, cache = ops.softmax_cross_entropy_forward(logits, labels, label_smoothing=smoothing)
    return ops.softmax_cross_entropy_backward(cache)


def decimal_loss(logits: Array, labels: Array, smoothing: float) -> float:
    """The definition with fifty digits: no trick against overflow is needed."""
    with localcontext() as context:
        context.prec = 50
        total, K = Decimal(0), logits.shape[1]
        for row, label in zip(logits, labels, strict=True):
            exponentials = [Decimal(float(value)).exp() for value in row]
            for k, exponential in enumerate(exponentials):
                target = (1 - Decimal(smoothing)) * int(k == label) + Decimal(smoothing) / K
                total -= target * (exponential / sum(exponentials)).ln()
        return float(total / len(logits))


@image_law
def test_equals_the_definition_in_fifty_digits(ops: Ops, case: ImageCase) -> None:
    logits, labels, _ = batch(case)
    for smoothing in (0.0, 0.1, 1.0):
        wanted = decimal_loss(logits, labels, smoothing)
        assert_within(loss(ops, logits, labels, smoothing), np.array(wanted), 1e-14)


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    logits, labels, soft = batch(case)
    for targets in (labels, soft):
        assert_gradients(
            lambda x, targets=targets: ops.softmax_cross_entropy_forward(
                x, targets, label_smoothing=0.1
            ),
            lambda grad_loss, cache: grad_loss * ops.softmax_cross_entropy_backward(cache),
            logits / case.scale,
            seed=case.seed,
        )


@image_law
def test_a_shift_of_the_logits_changes_nothing(ops: Ops, case: ImageCase) -> None:
    logits, labels, _ = batch(case)
    shifted = logits + 3 * case.scale
    assert_within(loss(ops, shifted, labels), loss(ops, logits, labels), 1e-13)
    rows = gradient(ops, logits, labels).sum(axis=1)
    assert_within(rows, np.zeros(case.images), 1e-15)


@image_law
def test_classes_have_no_order(ops: Ops, case: ImageCase) -> None:
    logits, labels, _ = batch(case)
    turned, turned_labels = logits[:, ::-1], case.classes - 1 - labels
    assert_within(loss(ops, turned, turned_labels, 0.1), loss(ops, logits, labels, 0.1), 1e-14)


@image_law
def test_a_batch_is_the_mean_of_its_images(ops: Ops, case: ImageCase) -> None:
    logits, labels, _ = batch(case)
    losses = [loss(ops, logits[n : n + 1], labels[n : n + 1], 0.1) for n in range(case.images)]
    assert_within(loss(ops, logits, labels, 0.1), sum(losses, np.zeros(())) / case.images, 1e-14)
    grads = [gradient(ops, logits[n : n + 1], labels[n : n + 1], 0.1) for n in range(case.images)]
    assert_within(gradient(ops, logits, labels, 0.1), np.concatenate(grads) / case.images, 1e-14)


@image_law
def test_smoothing_mixes_in_the_mean_over_all_labels(ops: Ops, case: ImageCase) -> None:
    logits, labels, _ = batch(case)
    every = [loss(ops, logits, np.full_like(labels, k)) for k in range(case.classes)]
    wanted = 0.9 * loss(ops, logits, labels) + 0.1 * np.mean(every)
    assert_within(loss(ops, logits, labels, 0.1), wanted, 1e-13)


@image_law
def test_soft_targets_mix_losses(ops: Ops, case: ImageCase) -> None:
    """One-hot rows are labels, and mixup's targets give the mixture of the two losses."""
    logits, labels, _ = batch(case)
    other = labels[::-1]
    first, second = np.eye(case.classes)[labels], np.eye(case.classes)[other]
    assert_within(loss(ops, logits, first, 0.1), loss(ops, logits, labels, 0.1), 1e-15)
    wanted = 0.3 * loss(ops, logits, labels) + 0.7 * loss(ops, logits, other)
    assert_within(loss(ops, logits, 0.3 * first + 0.7 * second), wanted, 1e-14)


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    labels = np.array([1, 4])
    assert math.isclose(loss(REFERENCE, np.zeros((2, 7)), labels), math.log(7), rel_tol=1e-15)


def test_huge_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4, 0.0]])
    assert loss(REFERENCE, logits, np.array([0])) == 0
    assert loss(REFERENCE, logits, np.array([1])) == 2e4
    assert gradient(REFERENCE, logits, np.array([1])).tolist() == [[1, -1, 0]]


def test_nan_is_not_hidden() -> None:
    assert np.isnan(loss(REFERENCE, np.array([[np.nan, 0.0]]), np.array([1])))


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        (np.array([0, 3]), 0.0, "labels[1] (=3) is not in 0 ... 2"),
        (np.array([-1, 0]), 0.0, "labels[0] (=-1) is not in 0 ... 2"),
        (np.array([0.0, 1.0]), 0.0, "labels of shape (N,) must be integers (got float64"),
        (np.array([0, 1, 2]), 0.0, "labels.shape (=(3,)) must equal (N,) (=(2,))"),
        (np.ones((2, 4)), 0.0, "labels.shape (=(2, 4)) must equal logits.shape (=(2, 3))"),
        (np.array([0, 1]), 1.5, "label_smoothing (=1.5) must lie in [0, 1]"),
        (np.array([0, 1]), math.nan, "label_smoothing (=nan) must lie in [0, 1]"),
    ],
)
def test_wrong_labels_are_named(labels: Array, smoothing: float, message: str) -> None:
    with pytest.raises(ReportedError, match=re.escape(f"softmax_cross_entropy: {message}")):
        loss(REFERENCE, np.zeros((2, 3)), labels, smoothing)


def test_logits_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ShapeError, match=r"logits.ndim \(=1\) must equal len"):
        loss(REFERENCE, np.zeros(3), np.array([0]))
    with pytest.raises(ShapeError, match=r"logits.shape \(=\(0, 3\)\) has no element"):
        loss(REFERENCE, np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(InexactError, match="exponential of a rational is irrational"):
        loss(REFERENCE, np.array([[Fraction(1)]]), np.array([0]))
