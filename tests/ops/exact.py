"""How the tests fill arrays and compare them: read-only in, raised errors out."""

from __future__ import annotations

from fractions import Fraction
from numbers import Rational

import numpy as np

from repvgg_ref.arrays import Array


def floats(rng: np.random.Generator, *shape: int, dtype: object = np.float64) -> Array:
    """Standard normal values."""
    return frozen(rng.standard_normal(shape).astype(np.dtype(dtype)))  # type: ignore[call-overload]


def rationals(rng: np.random.Generator, *shape: int) -> Array:
    """Small fractions; zeros are left as plain ints, as padding and ReLU produce them."""
    values = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        p, q = int(rng.integers(-9, 10)), int(rng.integers(1, 6))
        values[index] = Fraction(p, q) if p else 0
    return frozen(values)


def frozen(x: Array) -> Array:
    """`x`, read-only: an operator that writes to its input raises."""
    x.flags.writeable = False
    return x


def assert_exact(got: Array | None, wanted: Array) -> None:
    """Equal shapes, rational elements, ``==`` throughout."""
    assert got is not None
    assert got.shape == wanted.shape, f"shape {got.shape}, wanted {wanted.shape}"
    assert got.dtype == object, f"dtype {got.dtype}, wanted object"
    assert all(isinstance(value, Rational) for value in got.flat), "an element left the rationals"
    assert (got == wanted).all(), f"got {got}, wanted {wanted}"


def assert_within(got: Array, wanted: Array, tolerance: float) -> None:
    """Equal shapes; no element further off than `tolerance` times the largest wanted (or 1)."""
    assert got.shape == wanted.shape, f"shape {got.shape}, wanted {wanted.shape}"
    error = np.abs(got.astype(np.longdouble) - wanted).max(initial=0)
    bound = tolerance * max(1, np.abs(wanted).max(initial=0))
    if not (error <= bound):  # NaN must fail
        raise AssertionError(f"off by {error}, allowed {bound}")
