"""Arrays of any kind: exact roots, exact scalars, and CuPy found without being imported."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import array_module, scalar_like, sqrt, to_numpy
from repvgg_ref.errors import InexactError
from tests.ops.exact import assert_exact


@given(st.lists(st.fractions(), min_size=1))
def test_the_root_of_a_square_is_exact(roots: list[Fraction]) -> None:
    exact = np.array([abs(root) for root in roots], dtype=object)
    assert_exact(sqrt(exact * exact), exact)


@pytest.mark.parametrize("value", [2, Fraction(1, 3), Fraction(9, 8), -1, Fraction(-4, 9), 0.1])
def test_an_irrational_root_names_its_value(value: Any) -> None:
    with pytest.raises(InexactError, match=f"sqrt: {value} is not the square of a rational"):
        sqrt(np.array([4, value], dtype=object))


def test_roots_keep_their_shape_even_without_axes() -> None:
    assert_exact(sqrt(np.array(Fraction(4, 9), dtype=object)), np.array(Fraction(2, 3)))
    assert sqrt(np.ones((2, 0), dtype=object)).shape == (2, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floating_roots_keep_their_dtype(dtype: Any) -> None:
    root = sqrt(np.array([2], dtype))
    assert root.dtype == dtype
    assert root[0] == np.sqrt(dtype(2))


def test_a_scalar_among_rationals_is_a_fraction_of_the_same_value() -> None:
    exact = scalar_like(0.1, np.array([1], dtype=object))
    assert isinstance(exact, Fraction)
    assert exact == Fraction(0.1)
    assert scalar_like(0.1, np.ones(1)) == 0.1


def test_numpy_arrays_belong_to_numpy() -> None:
    x = np.ones(3)
    assert array_module(x) is np
    assert to_numpy(x) is x


def test_cupy_arrays_belong_to_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with CuPy's two names that are used: no GPU is needed to see the choice."""

    class DeviceArray:
        def get(self) -> Any:
            return np.full(2, math.pi)

    cupy: Any = SimpleNamespace(ndarray=DeviceArray)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    x: Any = DeviceArray()
    assert array_module(x) is cupy
    assert array_module(np.ones(3)) is np
    assert (to_numpy(x) == math.pi).all()
