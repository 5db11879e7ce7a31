"""Right means in float32: the same factors in another order, and where these leave exact halves.

A mean of integers often lies at an exact half. Scales that cancel on paper do not in float32, where
``s_x * (1 / s_y)`` may be a rounding above 1 or below it; then all halves go up, or all go down.
OpenVINO quantises by ``255 * (1 / (highest - lowest))``, the ends being real numbers, and
multiplies the sum by that times ``s_x`` before it averages (2026.4 on a CPU, to the last bit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer

HALVES = (
    "sends means at an exact half to the other neighbour, as factors of float32 in another order do"
)
_ROUNDINGS = 8 * 2.0**-24  # relative: more than any of the orders has


def _half_away(real: Array) -> Array:
    wide = real.astype(np.float64)
    found: Array = np.copysign(np.floor(np.abs(wide) + 0.5), wide)
    return found


# How the schemes that requantise in float make whole numbers.
_WHOLE: Mapping[str, Callable[[Array], Array]] = {
    "float-even": np.rint,
    "dequantized": np.rint,
    "float-away": _half_away,
}


def float_means(layer: IntegerLayer, x: Array, scheme: str) -> Iterator[tuple[Array, str]]:
    """Means (N, C, 1, 1) of `x` (N, C, H, W), and in words how; none of a scheme of fixed point."""
    if scheme not in _WHOLE:
        return
    total = layer.accumulate(x)[:, :, None, None].astype(np.float32)
    for real, how in _orders(layer, total, np.float32(x[0, 0].size)):
        whole = _WHOLE[scheme](real).astype(np.int64) + int(layer.output.zero_point)
        yield layer.output.saturated(whole, relu=layer.relu), how


def _orders(layer: IntegerLayer, total: Array, n: np.float32) -> Iterator[tuple[Array, str]]:
    """``total * s_x / (s_y * n)`` in float32, rounded after every product."""
    before, after = layer.input.scale, layer.output.scale
    one_nth, per_step = np.float32(1) / n, np.float32(1) / after
    real = total * before
    for mean, by in ((real * one_nth, "a product by 1 / pixels"), (real / n, "a division")):
        yield mean / after, f"averages real numbers by {by}, then divides by output_scale"
        yield mean * per_step, f"averages real numbers by {by}, then multiplies by 1 / output_scale"
    for ratio, by in (
        (before / after, "input_scale / output_scale"),
        (before * per_step, "input_scale * (1 / output_scale)"),
        (before * _levels_per_unit(layer), "input_scale * (255 / output range), as OpenVINO does"),
    ):
        for mean in (total * ratio * one_nth, total * ratio / n, total * (ratio * one_nth)):
            yield mean, f"multiplies by {by}, and averages, in float32"


def _levels_per_unit(layer: IntegerLayer) -> Array:
    """Quantisation steps in a unit of the output, from the real numbers at its ends."""
    made, limits = layer.output, np.iinfo(layer.output.dtype)
    low, high = (
        np.float32(end - int(made.zero_point)) * made.scale for end in (limits.min, limits.max)
    )
    found: Array = np.asarray(np.float32(limits.max - limits.min) * (np.float32(1) / (high - low)))
    return found


def is_but_for_halves(layer: IntegerLayer, x: Array, y_hat: Array, scheme: str) -> bool:
    """Whether `y_hat` are the nearest numbers, exact halves either way: any order in float is so.

    Not where the mean lies above a half nowhere: one that is cut off would look the same.
    """
    if scheme not in _WHOLE:
        return False
    zero = int(layer.output.zero_point)
    total = layer.accumulate(x)[:, :, None, None]
    exact = total * (float(layer.input.scale) / float(layer.output.scale)) / x[0, 0].size
    below = np.floor(exact)
    past_half = exact - below - 0.5
    is_half = np.abs(past_half) <= _ROUNDINGS * (np.abs(exact) + abs(zero))
    up = past_half > 0
    if not (up & ~is_half).any() or y_hat.shape != exact.shape:
        return False
    least, most = (
        layer.output.saturated((below + step).astype(np.int64) + zero, relu=layer.relu)
        for step in (up & ~is_half, up | is_half)
    )
    return bool(((least <= y_hat) & (y_hat <= most)).all())
