"""What quantising some layers would cost, without integers: rounded numbers in real arithmetic.

A layer that is quantised reads rounded numbers and multiplies by rounded weights; the others
compute as they are. With all layers quantised this is the integer network but for the rounding of
biases, and of accumulators that lie on a half.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.block import fused_block_forward
from repvgg_ref.integer.layers import Quantization
from repvgg_ref.integer.observers import Range
from repvgg_ref.integer.quantize import INPUT, LINEAR, activation, weights
from repvgg_ref.models.network import Model
from repvgg_ref.ops import Ops

_BATCH = 32


def layer_names(deploy: Model) -> list[str]:
    """Those that have weights, in order."""
    return [*(spec.name for spec in deploy.arch.blocks), LINEAR]


def simulated_logits(
    deploy: Model,
    ranges: Mapping[str, Range],
    images: Array,
    quantised: Collection[str],
    *,
    per_tensor: bool,
) -> Array:
    """Logits (N, classes) with the layers of `quantised` rounded to 8 bits.

    Parameters
    ----------
    deploy : Model
        A chain in deploy form, see `quantize.as_chain`.
    ranges : mapping
        From `quantize.calibrate`.
    images : (N, C, H, W) float array
    """
    sides = {name: activation(found.low, found.high, np.int8) for name, found in ranges.items()}
    params = dict(deploy.params)
    for name in layer_names(deploy):
        if name in quantised:
            key = f"{name}.weight" if name == LINEAR else f"{name}.fused.weight"
            params[key] = rounded_weight(params[key], per_tensor=per_tensor)
    ops = backend_ops(None, images.dtype)
    parts = [
        _forward(deploy, params, sides, images[start : start + _BATCH], quantised, ops)
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(parts)


def rounded_weight(weight: Array, *, per_tensor: bool) -> Array:
    """The real weights that the integers stand for."""
    nothing = np.zeros(len(weight), weight.dtype)
    numbers, _, scale = weights(weight, nothing, np.ones((), np.float32), per_tensor=per_tensor)
    across = scale.reshape((-1,) + (1,) * (weight.ndim - 1)) if scale.ndim else scale
    found: Array = (numbers * across).astype(weight.dtype)
    return found


def _forward(
    deploy: Model,
    params: Mapping[str, Array],
    sides: Mapping[str, Quantization],
    x: Array,
    quantised: Collection[str],
    ops: Ops,
) -> Array:
    y = ops.enter(_rounded(x, sides[INPUT]) if deploy.arch.blocks[0].name in quantised else x)
    following = [*layer_names(deploy)[1:], None]
    for spec, after in zip(deploy.arch.blocks, following, strict=False):
        y = fused_block_forward(spec, params, y, ops=ops)
        if after in quantised:
            y = ops.enter(_rounded(ops.leave(y), sides[spec.name]))
    features, _ = ops.global_avg_pool_forward(y)
    logits, _ = ops.linear_forward(features, params[f"{LINEAR}.weight"], params[f"{LINEAR}.bias"])
    return np.asarray(logits)


def _rounded(x: Array, side: Quantization) -> Array:
    return side.real(side.numbers(x)).astype(x.dtype)


def sqnr(wanted: Array, found: Array) -> float:
    """Signal over quantisation noise in decibels; infinite where nothing differs."""
    wanted = wanted.astype(np.float64)
    noise, signal = float(((found - wanted) ** 2).sum()), float((wanted**2).sum())
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal else float("-inf")


def kernels(deploy: Model) -> Iterator[tuple[str, Array]]:
    """(layer, weight) of every layer with weights."""
    for name in layer_names(deploy):
        yield name, deploy.params[f"{name}.weight" if name == LINEAR else f"{name}.fused.weight"]
