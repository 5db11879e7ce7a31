"""ReLU: its definition, NaN, and the subgradient at zero."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.errors import ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_exact


@image_law
def test_keeps_what_is_positive_and_its_gradient(ops: Ops, case: ImageCase) -> None:
    x, grad_y = case.rationals(case.shape, case.shape)
    y, cache = ops.relu_forward(x)
    kept = np.array([1 if value > 0 else 0 for value in x.flat], dtype=object).reshape(x.shape)
    assert_exact(y, x * kept)
    assert_exact(ops.relu_backward(grad_y, cache), grad_y * kept)


@image_law
def test_is_half_of_x_plus_its_absolute_value(ops: Ops, case: ImageCase) -> None:
    (x,) = case.floats(case.shape)
    y, _ = ops.relu_forward(x)
    assert (2 * y == x + abs(x)).all()


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    (x,) = case.floats(case.shape)
    x = x + np.sign(x) * 0.01  # off the kink
    assert_gradients(ops.relu_forward, ops.relu_backward, x, seed=case.seed)


def test_nan_and_infinity_pass_and_zero_has_subgradient_zero() -> None:
    x = np.array([np.nan, -np.inf, np.inf, 0.0, -0.0])
    y, cache = REFERENCE.relu_forward(x)
    assert np.isnan(y[0])
    assert y[1:].tolist() == [0, np.inf, 0, 0]
    assert REFERENCE.relu_backward(np.ones(5), cache).tolist() == [1, 0, 1, 0, 0]


def test_an_infinite_gradient_does_not_leak_through_a_closed_gate() -> None:
    """Multiplying by the mask would give inf * 0 = NaN."""
    _, cache = REFERENCE.relu_forward(np.array([-1.0]))
    assert REFERENCE.relu_backward(np.array([np.inf]), cache).tolist() == [0]


def test_a_gradient_of_another_shape_is_refused() -> None:
    _, cache = REFERENCE.relu_forward(np.ones(3))
    with pytest.raises(ShapeError, match=r"relu: grad_y\.shape"):
        REFERENCE.relu_backward(np.ones(4), cache)
