"""Every scheme against its definition in exact rationals: where halves go, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.errors import ReportedError
from repvgg_ref.integer.scaling import Scaling, fixed_point, scaling
from repvgg_ref.integer.schemes import SCHEMES

HALF = Fraction(1, 2)


def up(x: Fraction) -> int:
    return math.floor(x + HALF)


def away(x: Fraction) -> int:
    return math.floor(x + HALF) if x >= 0 else math.ceil(x - HALF)


def even(x: Fraction) -> int:
    return round(x)  # Python's rounds a Fraction's halves to even


FIXED: dict[str, Callable[[int, int, int], int]] = {
    "single": lambda a, q, t: up(Fraction(a * q, 2**t)),
    "half-away": lambda a, q, t: away(Fraction(a * q, 2**t)),
    "half-even": lambda a, q, t: even(Fraction(a * q, 2**t)),
    "floor": lambda a, q, t: math.floor(Fraction(a * q, 2**t)),
    "toward-zero": lambda a, q, t: math.trunc(Fraction(a * q, 2**t)),
    "double": lambda a, q, t: away(Fraction(_high(a, q, t), 2 ** max(t - 31, 0))),
    "double-up": lambda a, q, t: up(Fraction(_high(a, q, t), 2 ** max(t - 31, 0))),
}


def _high(a: int, q: int, t: int) -> int:
    shifted = min(max(a << max(31 - t, 0), -(2**31)), 2**31 - 1)
    return up(Fraction(shifted * q, 2**31))


def f32(x: Fraction) -> Fraction:
    """Round to float32, halves to even, in integers alone (no subnormals here)."""
    if x == 0:
        return x
    exponent = math.floor(math.log2(abs(x)))
    while Fraction(2) ** exponent > abs(x):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(x):
        exponent += 1
    ulp = Fraction(2) ** (exponent - 23)
    return even(x / ulp) * ulp


FLOATING: dict[str, Callable[[Fraction, Fraction, Fraction], int]] = {
    "float-even": lambda a, n, d: even(f32(f32(a) * f32(n / d))),
    "float-away": lambda a, n, d: away(f32(f32(a) * f32(n / d))),
    "dequantized": lambda a, n, d: even(f32(f32(f32(a) * n) / d)),
}


def test_every_scheme_is_defined_here() -> None:
    assert {*FIXED, *FLOATING} == {*SCHEMES}


def fixed(multiplier: int, shift: int) -> Scaling:
    """A scaling by ``multiplier * 2**-(31 + shift)``, in float32 as well."""
    real = np.asarray(multiplier / 2.0 ** (31 + shift), np.float32)
    one = np.ones((), np.float32)
    return Scaling(real, one, np.asarray(multiplier, np.int64), np.asarray(shift, np.int64))


def accumulators(seed: int, multiplier: int, right: int) -> list[int]:
    """Of all sizes and signs, at the ends of int32, and on exact halves where there are any."""
    rng = np.random.default_rng(seed)
    found = [0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 1]
    found += (rng.integers(-(2**31), 2**31, 60) >> rng.integers(0, 31, 60)).tolist()
    # a * q = (2 k + 1) 2^(t - 1): a half, if 2^(t - 1) / gcd(q, 2^(t - 1)) is small enough
    step = 2 ** (right - 1) // math.gcd(multiplier, 2 ** (right - 1))
    found += [k * step for k in range(-9, 10) if abs(k * step) < 2**31]
    return found


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize(
    ("multiplier", "shift"),
    [(2**30, 0), (2**30, 5), (2**30, 31), (1518500250, 7), (3 * 2**28, 9), (2**31 - 1, -3), (0, 0)],
)
def test_fixed_point_schemes_are_exact(name: str, multiplier: int, shift: int) -> None:
    values = accumulators(shift + 40, multiplier, 31 + shift)
    held = Scaling(
        np.ones((), np.float32),
        np.ones((), np.float32),
        np.asarray(multiplier, np.int64),
        np.asarray(shift, np.int64),
    )
    found = SCHEMES[name].requantize(np.array(values, np.int64), held)
    assert found.tolist() == [FIXED[name](a, multiplier, 31 + shift) for a in values]


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize(("numerator", "denominator"), [(0.5, 64.0), (0.00317, 0.0791), (3.0, 7.0)])
def test_floating_schemes_round_where_float32_does(
    name: str, numerator: float, denominator: float
) -> None:
    values = accumulators(3, 2**30, 37)
    n, d = np.asarray(numerator, np.float32), np.asarray(denominator, np.float32)
    held = scaling(n, np.ones((), np.float32), d)
    found = SCHEMES[name].requantize(np.array(values, np.int64), held)
    exact = [FLOATING[name](Fraction(a), Fraction(float(n)), Fraction(float(d))) for a in values]
    assert found.tolist() == exact


def test_a_multiplier_is_the_nearest_of_31_bits() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.uniform(0, 2, 200), 2.0 ** rng.uniform(-31, 20, 200)])
    multiplier, shift = fixed_point(real)
    assert ((multiplier >= 2**30) & (multiplier < 2**31)).all()
    for m, q, s in zip(real.tolist(), multiplier.tolist(), shift.tolist(), strict=True):
        unit = Fraction(1, 2 ** (31 + s)) if 31 + s >= 0 else Fraction(2 ** -(31 + s))
        assert abs(Fraction(m) - q * unit) <= unit / 2


def test_a_mantissa_that_rounds_up_to_one_carries() -> None:
    multiplier, shift = fixed_point(np.array([1 - 2.0**-40, 2.0**-33]))
    assert (multiplier.tolist(), shift.tolist()) == ([2**30, 0], [-1, 0])


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    one = np.ones((), np.float32)
    with pytest.raises(ReportedError, match="no scale"):
        scaling(one, np.array([1, scale], np.float32), one)


def test_halves_tell_the_schemes_apart() -> None:
    """At M = 1/4 every pair of schemes but those that are one function there differs."""
    quarter = Scaling(
        np.ones((), np.float32),
        np.asarray(4, np.float32),
        np.asarray(2**30, np.int64),
        np.asarray(1, np.int64),
    )
    sums = np.arange(-40, 41)
    found = {name: tuple(each.requantize(sums, quarter)) for name, each in SCHEMES.items()}
    alike = [{"float-even", "half-even", "dequantized"}, {"half-away", "float-away"}]
    for one, a in found.items():
        for two, b in found.items():
            assert (a == b) == (one == two or any({one, two} <= each for each in alike)), (one, two)
