"""The linear layer: a 1x1 convolution of a 1x1 image, and the adjoint, exactly."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from repvgg_ref.errors import ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_exact


def shapes(case: ImageCase) -> tuple[tuple[int, ...], ...]:
    """Of `x`, `weight`, `bias` and `grad_y`."""
    N, features, classes = case.images, case.channels, case.classes
    return (N, features), (classes, features), (classes,), (N, classes)


@image_law
def test_is_a_1x1_convolution(ops: Ops, case: ImageCase) -> None:
    x, weight, bias, _ = case.rationals(*shapes(case))
    y, _ = ops.linear_forward(x, weight, bias)
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    image, kernel = x[:, :, None, None], weight[:, :, None, None]
    assert_exact(y, ops.conv2d_forward(image, kernel, bias, **settings)[0][:, :, 0, 0])


@image_law
def test_backward_is_the_adjoint(ops: Ops, case: ImageCase) -> None:
    x, weight, bias, grad_y = case.rationals(*shapes(case))
    y, cache = ops.linear_forward(x, weight, bias)
    grads = ops.linear_backward(grad_y, cache)
    through_bias = (bias * grads.grad_bias).sum()
    assert through_bias == (bias * grad_y).sum()
    inner = (y * grad_y).sum() - through_bias
    assert inner == (x * grads.grad_x).sum()
    assert inner == (weight * grads.grad_weight).sum()


@image_law
def test_a_batch_of_two_is_two_batches_of_one(ops: Ops, case: ImageCase) -> None:
    x, weight, bias, _ = case.rationals(*shapes(case))
    y, _ = ops.linear_forward(x, weight, bias)
    single = [ops.linear_forward(row[None], weight, bias)[0] for row in x]
    assert_exact(y, np.concatenate(single))


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    x, weight, bias, _ = case.floats(*shapes(case))
    assert_gradients(ops.linear_forward, ops.linear_backward, x, weight, bias, seed=case.seed)


def test_what_does_not_fit_is_named() -> None:
    x, weight, bias = np.ones((2, 3)), np.ones((5, 3)), np.ones(5)
    _, cache = REFERENCE.linear_forward(x, weight, bias)
    wrong: dict[str, Callable[[], object]] = {
        "x.ndim (=1) must equal": lambda: REFERENCE.linear_forward(x[0], weight, bias),
        "weight.ndim (=1) must equal": lambda: REFERENCE.linear_forward(x, bias, bias),
        "weight.shape[1] (=2) must equal features (=3)": lambda: REFERENCE.linear_forward(
            x, weight[:, 1:], bias
        ),
        "bias.shape (=(4,)) must equal (classes,) (=(5,))": lambda: REFERENCE.linear_forward(
            x, weight, bias[1:]
        ),
        "grad_y.shape (=(2, 3)) must equal y.shape (=(2, 5))": lambda: REFERENCE.linear_backward(
            x, cache
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(ShapeError, match=re.escape(f"linear: {message}")):
            call()
