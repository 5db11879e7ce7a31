"""GELU against Python's own erf, its laws, its gradient."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.errors import InexactError, ShapeError
from repvgg_ref.ops import REFERENCE
from repvgg_ref.ops.gelu import erfc, gelu_backward, gelu_forward
from tests.gradcheck import assert_gradients


def test_erfc_is_pythons_to_the_last_bits() -> None:
    """Near the ends of the three intervals, too; what underflows is a subnormal or zero."""
    ends = [s * e * f for s in (-1, 1) for e in (0.46875, 4, 27) for f in (1 - 1e-9, 1, 1 + 1e-9)]
    x = np.array([*np.linspace(-30, 30, 4001), *ends])
    want = np.array([math.erfc(v) for v in x])
    assert not (abs(erfc(x) - want) > 1e-15 * want + 1e-300).any()


def test_values() -> None:
    y, cache = gelu_forward(np.array([0.0, 1.0, -1.0, 40.0, -40.0, np.nan]))
    phi = math.erfc(-math.sqrt(0.5)) / 2
    np.testing.assert_allclose(y, [0, phi, phi - 1, 40, 0, np.nan], rtol=1e-15, atol=1e-300)
    slopes = gelu_backward(np.ones(6), cache)[:4].tolist()
    bell = math.exp(-0.5) / math.sqrt(2 * math.pi)
    assert slopes == [0.5, pytest.approx(phi + bell), pytest.approx(1 - phi - bell), 1]


def test_gelu_of_the_mirror_image_differs_by_x() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)) * 3
    mirrored = gelu_forward(-x)[0]
    np.testing.assert_allclose(gelu_forward(x)[0], x + mirrored, rtol=0, atol=1e-14)


def test_the_gradient_is_that_of_finite_differences() -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 4)) * 2
    assert_gradients(gelu_forward, gelu_backward, x, seed=2)


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
