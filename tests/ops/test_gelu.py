"""GELU against Python's own erf, its laws, its gradient."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.errors import InexactError, ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from repvgg_ref.ops.gelu import gelu_backward, gelu_forward
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_within


def test_values() -> None:
    y, cache = gelu_forward(np.array([0.0, 1.0, -1.0, 40.0, -40.0, np.nan]))
    phi = math.erfc(-math.sqrt(0.5)) / 2
    np.testing.assert_allclose(y, [0, phi, phi - 1, 40, 0, np.nan], rtol=1e-15, atol=1e-300)
    slopes = gelu_backward(np.ones(6), cache)[:4].tolist()
    bell = math.exp(-0.5) / math.sqrt(2 * math.pi)
    assert slopes == [0.5, pytest.approx(phi + bell), pytest.approx(1 - phi - bell), 1]


@image_law
def test_gelu_is_x_times_what_python_says(ops: Ops, case: ImageCase) -> None:
    """In all three intervals of erf, and beyond."""
    (x,) = case.floats(case.shape)
    wide = np.concatenate([x.ravel() * factor for factor in (0.1, 1, 8, 40)])
    want = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in wide.tolist()]
    assert_within(ops.gelu_forward(wide)[0], np.array(want), 1e-14)


@image_law
def test_the_gradient_is_that_of_finite_differences(ops: Ops, case: ImageCase) -> None:
    (x,) = case.floats(case.shape)
    assert_gradients(ops.gelu_forward, ops.gelu_backward, x, seed=case.seed)


def test_types_stay_and_float16_is_rounded_once() -> None:
    x = np.linspace(-4, 4, 999).astype(np.float16)
    wide = gelu_forward(x.astype(np.float32))[0]
    assert wide.dtype == np.float32
    assert (REFERENCE.gelu_forward(x)[0] == wide.astype(np.float16)).all()


def test_refusals() -> None:
    with pytest.raises(InexactError):
        gelu_forward(np.array([Fraction(1, 2)]))
    with pytest.raises(ShapeError, match=r"gelu: grad_y\.shape"):
        gelu_backward(np.ones(2), gelu_forward(np.ones(3))[1])
