"""Small integer networks drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.integer.layers import IntegerLayer, Quantization
from repvgg_ref.integer.network import IntegerNetwork


def quantization(scale: float, zero_point: int, dtype: Any = np.int8) -> Quantization:
    return Quantization(np.asarray(scale, np.float32), np.asarray(zero_point, dtype))


def conv(
    name: str,
    inputs: int,
    outputs: int,
    before: Quantization,
    after: Quantization,
    *,
    seed: int,
    **settings: Any,
) -> IntegerLayer:
    """A 3x3 convolution whose outputs use the range of 8 bits."""
    rng = np.random.default_rng(seed)
    groups = settings.get("groups", 1)
    weight = rng.integers(-127, 128, (outputs, inputs // groups, 3, 3)).astype(np.int8)
    fan = 9 * inputs // groups
    spread = 64 * 73 * np.sqrt(fan)  # of a sum of products of uniform numbers
    weight_scale = (
        float(after.scale) * 50 / (float(before.scale) * spread) * rng.uniform(0.5, 2, outputs)
    )
    bias = rng.integers(-int(spread), int(spread), outputs).astype(np.int32)
    return IntegerLayer(
        name,
        "conv",
        before,
        after,
        weight,
        bias,
        weight_scale.astype(np.float32),
        padding=1,
        relu=settings.pop("relu", True),
        **settings,
    )


def chain(
    *,
    seed: int = 0,
    dtype: Any = np.int8,
    rounding: str = "single",
    head: bool = True,
    post_relu: bool = False,
) -> IntegerNetwork:
    """Four convolutions (strides, groups), pooling and a linear layer.

    `post_relu` puts zero points where a quantiser puts them behind a ReLU: at the smallest number.
    """
    rng = np.random.default_rng(seed)
    low = np.iinfo(dtype).min
    points = [int(p) for p in rng.integers(low + 40, low + 150, 7)]
    if post_relu:
        points[1:4] = [low] * 3
    scales = rng.uniform(0.01, 0.1, 7)
    sides = [quantization(s, p, dtype) for s, p in zip(scales, points, strict=True)]
    layers = [
        conv("stage0", 3, 8, sides[0], sides[1], seed=seed + 1, stride=2),
        conv("stage1.0", 8, 16, sides[1], sides[2], seed=seed + 2, stride=2),
        conv("stage1.1", 16, 16, sides[2], sides[3], seed=seed + 3, groups=2),
        conv("stage2.0", 16, 24, sides[3], sides[4], seed=seed + 4, relu=False),
    ]
    if head:
        weight = rng.integers(-127, 128, (10, 24)).astype(np.int8)
        bias = rng.integers(-3000, 3000, 10).astype(np.int32)
        spread = 0.02 * float(sides[6].scale) / float(sides[5].scale)
        scale = (spread * rng.uniform(0.5, 2, 10)).astype(np.float32)
        layers += [
            IntegerLayer("pool", "pool", sides[4], sides[5]),
            IntegerLayer("linear", "linear", sides[5], sides[6], weight, bias, scale),
        ]
    return IntegerNetwork(tuple(layers), rounding)


def images(network: IntegerNetwork, *, seed: int = 0, batch: int = 2, size: int = 20) -> Any:
    """Numbers of the whole range."""
    dtype = network.layers[0].input.dtype
    range_ = np.iinfo(dtype)
    shape = (batch, network.in_channels, size, size)
    return np.random.default_rng(seed).integers(range_.min, range_.max + 1, shape).astype(dtype)
