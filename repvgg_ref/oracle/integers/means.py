"""Other right ways to average: exact division, where input and output mean the same by a number.

The mean of numbers that share their scale and zero point with the result needs no multiplier.
Devices then divide: TensorFlow Lite's AVERAGE_POOL_2D and CMSIS-NN the plain sum, halves away from
zero (reference/integer_ops/pooling.h); cheap hardware without rounding. A multiplier for 1/n, which
31 bits do not hold exactly, may give a number less; so both are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer

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


def divided(layer: IntegerLayer, x: Array, scheme: str) -> Iterator[Array]:
    """Means (N, C, 1, 1) that a device of `scheme` may give for numbers (N, C, H, W), by division.

    None where input and output differ in scale or zero point: that takes a multiplier.
    """
    given, made = layer.input, layer.output
    same = given.scale == made.scale and given.zero_point == made.zero_point
    if layer.kind != "pool" or not same or given.dtype != made.dtype:
        return
    n, zero = int(np.prod(x.shape[2:])), int(given.zero_point)
    total = x.astype(np.int64).sum(axis=(2, 3), keepdims=True)
    for division in _DIVISIONS[scheme]:
        for taken in (0, zero):  # with the zero point in the sum, or without it
            mean = division(total - n * taken, n) + taken
            yield made.saturated(mean, relu=layer.relu)
