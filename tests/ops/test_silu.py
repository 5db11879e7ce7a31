"""SiLU: its definition, its limits, and its gradient."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.errors import InexactError, ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from repvgg_ref.ops.silu import silu_backward, silu_forward
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_within


@image_law
def test_is_x_where_its_mirror_image_is_taken_away(ops: Ops, case: ImageCase) -> None:
    """``x s(x) + x s(-x) = x``, since the two sigmoids add up to 1."""
    (x,) = case.floats(case.shape)
    y, mirrored = ops.silu_forward(x)[0], ops.silu_forward(-x)[0]
    assert_within(y - mirrored, x, 1e-14)


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    (x,) = case.floats(case.shape)
    assert_gradients(ops.silu_forward, ops.silu_backward, x, seed=case.seed)


def test_its_value_and_slope_at_known_points() -> None:
    y, cache = silu_forward(np.array([0.0, 1.0, -1000.0, 1000.0, np.nan]))
    assert y[:4].tolist() == [0, 1 / (1 + math.exp(-1)), 0, 1000]
    assert np.isnan(y[4])
    assert silu_backward(np.ones(5), cache)[:4].tolist() == [0.5, pytest.approx(0.92767051), 0, 1]


def test_float16_is_rounded_once() -> None:
    x = np.linspace(-6, 6, 101).astype(np.float16)
    wide = silu_forward(x.astype(np.float32))[0]
    assert (REFERENCE.silu_forward(x)[0] == wide.astype(np.float16)).all()


def test_rationals_and_gradients_of_another_shape_are_refused() -> None:
    with pytest.raises(InexactError, match="irrational"):
        silu_forward(np.array([Fraction(1, 2)]))
    with pytest.raises(ShapeError, match=r"silu: grad_y\.shape"):
        silu_backward(np.ones(2), silu_forward(np.ones(3))[1])
