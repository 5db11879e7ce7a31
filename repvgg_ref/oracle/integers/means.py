"""Other right ways to average than M = s_x / (s_y n) in float32: other multipliers, and division.

M may be the multiplier nearest to the exact quotient, or that of a convolution by ones of the
weight scale 1/n, which float32 holds nearly. TensorFlow Lite's MEAN takes that of s_x / s_y and
divides it by n, cut off after 31 bits (``QuantizedMeanOrSum``, tensorflow/lite/kernels/internal/
reference/reduce.h). Before, and of uint8 still, it scales the sum of the numbers as they are and
adds ``z_y - z_x s_x / s_y``, rounded (``Mean`` of uint8 in the same file; of int8 in
optimized/integer_ops/mean.h). Its oldest releases cut that share off: wrong by one.

The mean of numbers that share their scale and zero point with the result needs no multiplier.
Devices then divide: TensorFlow Lite's AVERAGE_POOL_2D and CMSIS-NN the plain sum, halves away from
zero (reference/integer_ops/pooling.h); cheap hardware without rounding. A multiplier for 1/n, which
31 bits do not hold exactly, may give a number less; so both are right.

What devices of float32 do stands in `float_means`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.scaling import FARTHEST, Scaling, fixed_point
from repvgg_ref.integer.scaling import scaling as scaled
from repvgg_ref.integer.schemes import SCHEMES
from repvgg_ref.oracle.integers.float_means import HALVES, float_means, is_but_for_halves

Division = Callable[[Array, int], Array]


def _down(total: Array, n: int) -> Array:
    found: Array = total // n
    return found


def _toward_zero(total: Array, n: int) -> Array:
    found: Array = np.sign(total) * (np.abs(total) // n)
    return found


def _half_up(total: Array, n: int) -> Array:
    found: Array = (2 * total + n) // (2 * n)
    return found


def _half_away(total: Array, n: int) -> Array:
    found: Array = np.sign(total) * _half_up(np.abs(total), n)
    return found


def _half_even(total: Array, n: int) -> Array:
    up = _half_up(total, n)
    is_half = 2 * total + n == 2 * n * up
    found: Array = up - (is_half & (up % 2 == 1))
    return found


# Where a device that requantises by a scheme sends the halves of a division.
_DIVISIONS: Mapping[str, tuple[Division, ...]] = {
    "float-even": (_half_even,),
    "dequantized": (_half_even,),
    "half-even": (_half_even,),
    "float-away": (_half_away,),
    "half-away": (_half_away,),
    "double": (_half_away, _half_up),
    "double-up": (_half_up, _half_away),
    "single": (_half_up, _half_away),
    "floor": (_down,),
    "toward-zero": (_toward_zero,),
}


# Its share of the zero point is half a step off at most, as a wrong rounding may look: no other
# scheme is TensorFlow Lite's own.
_LEGACY = frozenset({"double", "double-up"})


class Mean(NamedTuple):
    """Numbers (N, C, 1, 1), and in words how they are averaged."""

    numbers: Array
    how: str


def other_mean(layer: IntegerLayer, x: Array, y_hat: Array, scheme: str) -> str | None:
    """In which way but the layer's own a device of `scheme` gives `y_hat` (N, C, 1, 1), in words.

    None if in no right one, and for layers that are no pool; `x` is (N, C, H, W).
    """
    if layer.kind != "pool":
        return None
    ways = _means(layer, x, scheme)
    found = next((way.how for way in ways if np.array_equal(way.numbers, y_hat)), None)
    if found is None and is_but_for_halves(layer, x, y_hat, scheme):
        return HALVES
    return found


def _means(layer: IntegerLayer, x: Array, scheme: str) -> Iterator[Mean]:
    for scaling, how in _multipliers(layer, int(np.prod(x.shape[2:]))):
        whole = SCHEMES[scheme].requantize(layer.accumulate(x)[:, :, None, None], scaling)
        numbers = whole + int(layer.output.zero_point)
        yield Mean(layer.output.saturated(numbers, relu=layer.relu), how)
    if scheme in _LEGACY:
        yield _as_they_are(layer, x, scheme)
    for numbers, how in float_means(layer, x, scheme):
        yield Mean(numbers, how)
    for numbers in _divided(layer, x, scheme):
        yield Mean(numbers, "divides by the number of pixels, without a multiplier")


def _multipliers(layer: IntegerLayer, n: int) -> Iterator[tuple[Scaling, str]]:
    """Of a mean over `n` pixels."""
    before, after = (side.scale.astype(np.float64) for side in (layer.input, layer.output))
    one, nearest = np.ones((), np.float32), np.asarray(before / (after * n))
    single = nearest.astype(np.float32)
    yield (
        Scaling(single, one, *fixed_point(nearest)),
        "multiplies by the number nearest to input_scale / (output_scale * pixels)",
    )
    one_nth = np.asarray(np.float32(1) / np.float32(n))
    yield (
        scaled(layer.input.scale, one_nth, layer.output.scale),
        "multiplies by input_scale * (1 / pixels) / output_scale, with 1 / pixels in float32",
    )
    # In one integer, at most 32 bits longer and shifted by no more than there is a shift for.
    multiplier, shift = fixed_point(np.asarray(before / after))
    longer = min(n.bit_length() - 1, 32, FARTHEST - int(shift))
    yield (
        Scaling(single, one, (multiplier << longer) // n, shift + longer),
        "multiplies by input_scale / output_scale divided by the number of pixels in integers, as "
        "TensorFlow Lite's MEAN does",
    )


def _as_they_are(layer: IntegerLayer, x: Array, scheme: str) -> Mean:
    """TensorFlow Lite's MEAN of numbers whose zero point stays in the sum, all in float32."""
    given, made, n = layer.input, layer.output, int(np.prod(x.shape[2:]))
    real = np.asarray(given.scale / (np.float32(n) * made.scale), np.float32)
    scaling = Scaling(real, np.ones((), np.float32), *fixed_point(real.astype(np.float64)))
    total = x.astype(np.int64).sum(axis=(2, 3), keepdims=True)
    whole = SCHEMES[scheme].requantize(total, scaling)
    share = np.float32(int(given.zero_point)) * given.scale / made.scale
    taken = int(share + np.copysign(np.float32(0.5), share))
    return Mean(
        made.saturated(whole + int(made.zero_point) - taken, relu=layer.relu),
        "scales the sum of the numbers as they are, and takes off what their zero point has of it, "
        "as TensorFlow Lite's MEAN of uint8 does",
    )


def _divided(layer: IntegerLayer, x: Array, scheme: str) -> Iterator[Array]:
    """Means by division.

    None where input and output differ in scale or zero point: that takes a multiplier.
    """
    given, made = layer.input, layer.output
    same = given.scale == made.scale and given.zero_point == made.zero_point
    if not same or given.dtype != made.dtype:
        return
    n, zero = int(np.prod(x.shape[2:])), int(given.zero_point)
    total = x.astype(np.int64).sum(axis=(2, 3), keepdims=True)
    for division in _DIVISIONS[scheme]:
        for taken in (0, zero):  # with the zero point in the sum, or without it
            mean = division(total - n * taken, n) + taken
            yield made.saturated(mean, relu=layer.relu)
