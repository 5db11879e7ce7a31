"""How an accumulator becomes an 8-bit number again: every scheme in the field, in one table.

All compute ``round(accumulator * M)``; they differ in how M is held and where halves go. Each is a
function of int64 accumulators and a `Scaling` shaped to meet them, and returns int64 numbers to
which the zero point is still to be added. Shifts to the right are arithmetic: they round down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.scaling import MULTIPLIER_BITS, Scaling

ANY = "any"  # as a network's rounding: whichever explains all of its layers


class Scheme(NamedTuple):
    """A way to requantise; `ties` says where exact halves go, `used_by` who computes so."""

    requantize: Callable[[Array, Scaling], Array]
    ties: str
    used_by: str


def float_even(accumulator: Array, scaling: Scaling) -> Array:
    """``rint(float32(accumulator) * float32(M))``; the product is rounded to float32, too."""
    return _integers(np.rint(accumulator.astype(np.float32) * scaling.single))


def float_away(accumulator: Array, scaling: Scaling) -> Array:
    """``roundf(float32(accumulator) * float32(M))``: C's rounding, halves away from zero."""
    product = accumulator.astype(np.float32) * scaling.single
    return _integers(np.copysign(np.floor(np.abs(product.astype(np.float64)) + 0.5), product))


def dequantized(accumulator: Array, scaling: Scaling) -> Array:
    """``rint((float32(accumulator) * numerator) / denominator)``: dequantise, then quantise."""
    real = accumulator.astype(np.float32) * scaling.numerator
    return _integers(np.rint(real / scaling.denominator))


def double(accumulator: Array, scaling: Scaling) -> Array:
    """Rounded twice: the doubling high product, then the shift.

    ``SaturatingRoundingDoublingHighMul`` sends halves up, ``RoundingDivideByPOT`` away from zero
    (gemmlowp, fixedpoint.h). A multiplier above 1 shifts the accumulator to the left first.
    """
    return _half_away(_high(accumulator, scaling), np.maximum(scaling.shift, 0))


def double_up(accumulator: Array, scaling: Scaling) -> Array:
    """As `double`, with halves up in both steps, as a rounding shift of vector units does."""
    return _half_up(_high(accumulator, scaling), np.maximum(scaling.shift, 0))


def single(accumulator: Array, scaling: Scaling) -> Array:
    """Rounded once, halves up: ``(accumulator * multiplier + 2**(t - 1)) >> t``, t = 31 + shift."""
    return _half_up(accumulator * scaling.multiplier, scaling.right_shift)


def half_away(accumulator: Array, scaling: Scaling) -> Array:
    """Rounded once, halves away from zero."""
    return _half_away(accumulator * scaling.multiplier, scaling.right_shift)


def half_even(accumulator: Array, scaling: Scaling) -> Array:
    """Rounded once, halves to the even neighbour."""
    product, t = accumulator * scaling.multiplier, scaling.right_shift
    up = _half_up(product, t)
    is_half = (product & _low_bits(t)) == _half(t)
    found: Array = up - (is_half & (up & 1 == 1))
    return found


def floor(accumulator: Array, scaling: Scaling) -> Array:
    """Not rounded: ``accumulator * multiplier >> t``, towards minus infinity."""
    found: Array = accumulator * scaling.multiplier >> scaling.right_shift
    return found


def toward_zero(accumulator: Array, scaling: Scaling) -> Array:
    """Not rounded: the magnitude's bits below one are dropped."""
    product = accumulator * scaling.multiplier
    found: Array = np.sign(product) * (np.abs(product) >> scaling.right_shift)
    return found


SCHEMES: Mapping[str, Scheme] = {
    "float-even": Scheme(float_even, "to even", "ONNX Runtime, FBGEMM, XNNPACK in float32"),
    "double": Scheme(double, "up, then away from zero", "gemmlowp, TFLite reference, CMSIS-NN"),
    "single": Scheme(single, "up", "TOSA, XNNPACK rndnu, CMSIS-NN with single rounding"),
    "half-away": Scheme(half_away, "away from zero", "hardware of one's own"),
    "floor": Scheme(floor, "none", "cheap hardware"),
    "double-up": Scheme(double_up, "up, twice", "gemmlowp on vector units"),
    "half-even": Scheme(half_even, "to even", "fixed point with convergent rounding"),
    "toward-zero": Scheme(toward_zero, "none", "C's integer division"),
    "float-away": Scheme(float_away, "away from zero", "C's roundf"),
    "dequantized": Scheme(dequantized, "to even", "QuantizeLinear behind a float convolution"),
}


def _integers(x: Array) -> Array:
    """Whole floats as int64."""
    return x.astype(np.int64)


def _high(accumulator: Array, scaling: Scaling) -> Array:
    """The doubling high product, halves up; a shift to the left, before it, saturates at int32."""
    shifted = accumulator << np.maximum(-scaling.shift, 0)
    inside = np.clip(shifted, -(1 << MULTIPLIER_BITS), (1 << MULTIPLIER_BITS) - 1)
    return _half_up(inside * scaling.multiplier, np.asarray(MULTIPLIER_BITS))


def _half_up(x: Array, t: Array) -> Array:
    """``floor(x / 2**t + 1/2)``."""
    found: Array = (x + _half(t)) >> t
    return found


def _half_away(x: Array, t: Array) -> Array:
    """`_half_up` of the magnitude, with the sign put back."""
    found: Array = np.sign(x) * _half_up(np.abs(x), t)
    return found


def _half(t: Array) -> Array:
    """``2**(t - 1)``, and 0 for t = 0: nothing falls out, nothing is rounded."""
    found: Array = _low_bits(t) - (_low_bits(t) >> 1)
    return found


def _low_bits(t: Array) -> Array:
    """The mask of the t bits that fall out."""
    found: Array = (np.int64(1) << t) - 1
    return found
