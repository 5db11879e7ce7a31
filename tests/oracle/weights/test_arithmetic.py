"""Simulated rounding against the processor's own and against exact rationals."""

from __future__ import annotations

import platform
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.exact.rounding import nearest
from repvgg_ref.oracle.weights.arithmetic import DIRECTIONS, Arithmetic, Direction, narrow, stepped
from tests.oracle.weights.converters import rounding

on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="rounding modes are x86's"
)


@on_x86
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_float32_operations_are_the_processors(direction: Direction) -> None:
    rng = np.random.default_rng(0)
    a, b = (
        (rng.normal(size=4000) * 10.0 ** rng.uniform(-12, 12, 4000)).astype(np.float32)
        for _ in range(2)
    )
    b[:500] = -a[:500] * (1 + np.float32(1e-7) * rng.integers(-3, 3, 500).astype(np.float32))
    ours = Arithmetic(direction)
    with rounding(direction):
        theirs = a + b, a * b, a / b, np.sqrt(np.abs(a))
    mine = ours.add(a, b), ours.multiply(a, b), ours.divide(a, b), ours.root(np.abs(a))
    for got, want in zip(mine, theirs, strict=True):
        normal = np.abs(want) > 2.0**-126
        assert (got == want)[normal].all()
    if direction != "nearest":
        assert (theirs[1] != a * b).any()


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_narrowing_to_nearest_is_correct_rounding(name: str) -> None:
    values = np.random.default_rng(1).normal(size=200) * 10.0 ** np.arange(200).clip(0, 3)
    values[:3] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0  # ties of bfloat16, and zero
    got = narrow(values, name, "nearest")
    if name == "bf16":
        assert got[0] == 1
        assert got[1] == 1 + 2.0**-6
        assert (np.abs(got - values) <= 2.0**-8 * np.abs(values)).all()
        return
    dtype = np.float16 if name == "fp16" else np.float32
    want = [float(nearest(Fraction(float(v)), dtype)) for v in values]
    assert (got == want).all()


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_directions_enclose_a_number(name: str) -> None:
    values = np.random.default_rng(2).normal(size=500)
    down, up, zero, near = (narrow(values, name, d) for d in ("down", "up", "zero", "nearest"))
    assert (down < values).all()
    assert (values < up).all()
    assert (zero == np.where(values > 0, down, up)).all()
    assert ((near == down) | (near == up)).all()
    assert (np.abs(near - values) <= np.minimum(values - down, up - values)).all()
    assert (narrow(near, name, "up") == near).all()


def test_a_step_is_an_ulp_away_from_zero() -> None:
    x = np.array([1.5, -2.25, 0], np.float32)
    want = [np.nextafter(np.float32(1.5), np.float32(2)), np.nextafter(x[1], np.float32(-3)), 0]
    assert (stepped(x, 1) == want).all()
