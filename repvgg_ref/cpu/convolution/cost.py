"""Which algorithm is the cheapest for a layer, by a model of three terms.

    time = products / rate  +  numbers moved by the transforms or the gather  +  weight bytes / bw

The constants are those of one AVX-512 core and enter as ratios, so a machine that is faster all
over chooses the same.
"""

from __future__ import annotations

from typing import Literal

from repvgg_ref.cpu.convolution.algorithms import (
    DEFAULT_CHOICES,
    TRAINING_CHOICES,
    Algorithm,
    applies,
    tile_of,
)
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.convolution.winograd import Tiling
from repvgg_ref.cpu.convolution.winograd_stride_2 import Strips

SECONDS_A_PRODUCT = 2 / 150e9
SECONDS_A_TRANSFORM_PRODUCT = 0.057e-9  # products with matrices of 4 to 8 rows
SECONDS_A_GATHERED_NUMBER = 0.1e-9
SECONDS_AN_ADDED_NUMBER = 0.2e-9
SECONDS_A_WEIGHT_BYTE = 1 / 12e9
SECONDS_A_TILE_NUMBER = 0.45e-9
SECONDS_A_KERNEL_NUMBER = 0.8e-9
PACKING_ROWS = 12  # packing a weight matrix takes the time of this many rows of pixels


def seconds(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> float:
    """Estimated time on one core."""
    C, O, G = shape.channels, shape.outputs, shape.groups  # noqa: E741  (the shape letters)
    if algorithm == "direct":
        rows = shape.images * shape.height * shape.width
        inner = shape.kernel**2 * C
        weight_bytes = inner * O / G * itemsize
        moved = rows * inner * SECONDS_A_GATHERED_NUMBER
        products = (rows + PACKING_ROWS) * inner * O / G * SECONDS_A_PRODUCT
        return products + moved + weight_bytes * SECONDS_A_WEIGHT_BYTE
    if shape.stride == 2:
        taps = 3 * (tile_of(algorithm) + 2)
        weight_bytes = taps * C * O / G * itemsize
        return _stride_2_seconds(algorithm, shape) + weight_bytes * SECONDS_A_WEIGHT_BYTE
    tiling = Tiling(tile_of(algorithm), shape.stride, shape.height, shape.width)
    m, t = tiling.m, tiling.t
    rows = shape.images * tiling.strips * tiling.tiles
    products = (rows + PACKING_ROWS) * t * t * C * O / G * SECONDS_A_PRODUCT
    transforms = rows * (C * (tiling.step + t) * t * t + O * (t + m) * t * m)
    weight_bytes = t * t * C * O / G * itemsize
    return (
        products + transforms * SECONDS_A_TRANSFORM_PRODUCT + weight_bytes * SECONDS_A_WEIGHT_BYTE
    )


def _stride_2_seconds(algorithm: Algorithm, shape: ConvShape) -> float:
    """F(m, 2) down the rows (`winograd_stride_2`), all but its weights' way to the processor."""
    C, O, G = shape.channels, shape.outputs, shape.groups  # noqa: E741  (the shape letters)
    m = tile_of(algorithm)
    layout = Strips(m, shape.height, shape.width)
    windows = shape.images * shape.width * layout.products
    products = (windows + (m + 2) * PACKING_ROWS) * 3 * C * O / G
    strips = shape.images * layout.strips * shape.width
    transforms = strips * (2 * C * (m + 1) ** 2 + O * m * (m + 2))
    outputs = shape.images * shape.height * shape.width * O
    return (
        products * SECONDS_A_PRODUCT
        + windows * 3 * C * SECONDS_A_GATHERED_NUMBER
        + transforms * SECONDS_A_TRANSFORM_PRODUCT
        + outputs * SECONDS_AN_ADDED_NUMBER
    )


def training_seconds(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> float:
    """The same in a training step, whose kernels are new each time."""
    if algorithm == "direct" or shape.stride == 1:
        return gradient_seconds(algorithm, shape, itemsize)
    m = tile_of(algorithm)
    layout = Strips(m, shape.height, shape.width)
    even, odd = (m + 1) * layout.strips, shape.height  # rows, laid out with zeros beside them
    pixels = shape.images * shape.width
    numbers = pixels * (2 * shape.channels * (even + odd) + shape.outputs * shape.height)
    kernels = (9 + 3 * (m + 2)) * shape.channels * shape.outputs / shape.groups
    return (
        _stride_2_seconds(algorithm, shape)
        + numbers * SECONDS_A_TILE_NUMBER
        + kernels * SECONDS_A_KERNEL_NUMBER
    )


def gradient_seconds(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> float:
    """The weight gradient, which is tiled in both dimensions whatever the stride.

    Transforms are counted by the numbers they write, because their matrices are cold there.
    """
    if algorithm == "direct":
        return seconds(algorithm, shape, itemsize)
    C, O, G = shape.channels, shape.outputs, shape.groups  # noqa: E741  (the shape letters)
    tiling = Tiling(tile_of(algorithm), shape.stride, shape.height, shape.width)
    m, t = tiling.m, tiling.t
    rows = shape.images * tiling.strips * tiling.tiles
    products = rows * t * t * C * O / G * SECONDS_A_PRODUCT
    numbers = rows * (C * (tiling.step + t) * t + O * (t + m) * t)
    kernels = t * t * C * O / G
    return products + numbers * SECONDS_A_TILE_NUMBER + kernels * SECONDS_A_KERNEL_NUMBER


def cheapest(
    shape: ConvShape,
    itemsize: int,
    *,
    purpose: Literal["inference", "training", "gradient"] = "inference",
) -> Algorithm:
    """The choice with the least estimated time.

    In "training" the kernels are new each time; "gradient" is that of the weights.
    """
    estimate = {
        "inference": seconds,
        "training": training_seconds,
        "gradient": gradient_seconds,
    }[purpose]
    choices = DEFAULT_CHOICES if purpose == "inference" else TRAINING_CHOICES
    possible = [algorithm for algorithm in choices if applies(algorithm, shape)]
    return min(possible, key=lambda each: estimate(each, shape, itemsize))
