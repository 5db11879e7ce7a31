"""The sigmoid: never overflows, symmetric, and refuses rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.errors import InexactError, ShapeError
from repvgg_ref.ops.sigmoid import sigmoid_backward, sigmoid_forward
from tests.gradcheck import assert_gradients
from tests.ops.exact import assert_within


def test_extremes_neither_overflow_nor_warn() -> None:
    y, cache = sigmoid_forward(np.array([-np.inf, -1e5, -700.0, 0.0, 700.0, 1e5, np.inf, np.nan]))
    assert y[:2].tolist() == [0, 0]
    assert y[2] == math.exp(-700)
    assert y[3:7].tolist() == [0.5, 1, 1, 1]
    assert np.isnan(y[7])
    assert sigmoid_backward(np.ones(8), cache)[:2].tolist() == [0, 0]


def test_is_symmetric_about_one_half() -> None:
    x = np.linspace(-40, 40, 1001)
    assert_within(sigmoid_forward(-x)[0], 1 - sigmoid_forward(x)[0], 2e-16)


def test_backward_equals_finite_differences() -> None:
    assert_gradients(sigmoid_forward, sigmoid_backward, np.linspace(-6, 6, 49), seed=0)


def test_rationals_are_refused_with_the_reason() -> None:
    with pytest.raises(InexactError, match=r"sigmoid: .* the exponential of a rational is irratio"):
        sigmoid_forward(np.array([Fraction(1, 2)]))


def test_a_gradient_of_another_shape_is_refused() -> None:
    _, cache = sigmoid_forward(np.ones(3))
    with pytest.raises(ShapeError, match=r"sigmoid: grad_y\.shape"):
        sigmoid_backward(np.ones(2), cache)
