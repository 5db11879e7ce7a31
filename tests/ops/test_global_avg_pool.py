"""Global average pooling: `statistics.mean`, and the adjoint, exactly."""

from __future__ import annotations

import statistics
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.errors import ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_exact


@image_law
def test_is_the_mean_of_each_channel(ops: Ops, case: ImageCase) -> None:
    (x,) = case.rationals(case.shape)
    y, _ = ops.global_avg_pool_forward(x)
    means = [[statistics.mean(map(Fraction, c.flat)) for c in image] for image in x]
    assert_exact(y, np.array(means, dtype=object))


@image_law
def test_backward_is_the_adjoint(ops: Ops, case: ImageCase) -> None:
    x, grad_y = case.rationals(case.shape, case.shape[:2])
    y, cache = ops.global_avg_pool_forward(x)
    grad_x = ops.global_avg_pool_backward(grad_y, cache)
    assert (y * grad_y).sum() == (x * grad_x).sum()
    assert_exact(grad_x.sum(axis=(2, 3)), grad_y)


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    (x,) = case.floats(case.shape)
    assert_gradients(ops.global_avg_pool_forward, ops.global_avg_pool_backward, x, seed=case.seed)


def test_integer_zeros_stay_rational() -> None:
    zeros = np.zeros((1, 2, 3, 3), dtype=object)
    y, cache = REFERENCE.global_avg_pool_forward(zeros)
    assert_exact(y, np.zeros((1, 2), dtype=object))
    assert_exact(REFERENCE.global_avg_pool_backward(y * 0, cache), zeros)


def test_the_gradient_can_be_written_to() -> None:
    """A broadcast view would let one write change every pixel."""
    y, cache = REFERENCE.global_avg_pool_forward(np.ones((1, 1, 2, 2)))
    grad_x = REFERENCE.global_avg_pool_backward(y, cache)
    grad_x[0, 0, 0, 0] = 7
    assert grad_x.sum() == 7.75


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ShapeError, match=r"x.ndim \(=2\) must equal"):
        REFERENCE.global_avg_pool_forward(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"x.shape \(=\(2, 3, 0, 4\)\) has no pixel"):
        REFERENCE.global_avg_pool_forward(np.ones((2, 3, 0, 4)))
    _, cache = REFERENCE.global_avg_pool_forward(np.ones((2, 3, 4, 4)))
    with pytest.raises(ShapeError, match=r"grad_y.shape \(=\(2, 4\)\) must equal y.shape"):
        REFERENCE.global_avg_pool_backward(np.ones((2, 4)), cache)
