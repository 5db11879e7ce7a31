"""Which algorithm is the cheapest for a layer: what each does, counted, times what that takes.

The times are those of one AVX-512 core and enter as ratios, so a machine that is faster all over
chooses the same.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from repvgg_ref.cpu.convolution.algorithms import (
    DEFAULT_CHOICES,
    TRAINING_CHOICES,
    Algorithm,
    applies,
    tile_of,
)
from repvgg_ref.cpu.convolution.interleaved import parted
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.convolution.winograd import Tiling
from repvgg_ref.cpu.convolution.winograd_stride_2 import Strips

# Transformed in cache, in the network's arithmetic: half of what it takes by `SECONDS`. Those of
# stride 2 are transformed in float64 and written to memory.
STREAMED_TILE, STREAMED_ROW = 0.6, 1.5
PACKING_ROWS = 12  # packing a weight matrix takes the time of this many rows of pixels


class Work(NamedTuple):
    """How often an algorithm does what; or, in `SECONDS`, what each takes."""

    products: float
    weight_bytes: float = 0  # that come from memory
    transform_products: float = 0  # with matrices of 4 to 8 rows
    gathered: float = 0
    added: float = 0
    cold: float = 0  # numbers that a transform writes, its operands being cold
    kernels: float = 0  # numbers of kernels that are transformed


SECONDS = Work(2 / 150e9, 1 / 12e9, 0.057e-9, 0.1e-9, 0.2e-9, 0.45e-9, 0.8e-9)


def seconds(work: Work) -> float:
    """Estimated time on one core."""
    return sum(count * each for count, each in zip(work, SECONDS, strict=True))


def inference(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> Work:
    """One convolution with weights packed before."""
    if algorithm == "direct":
        return _direct(shape, itemsize)
    if shape.dilation > 1:
        return _with_copies(inference(algorithm, parted(shape), itemsize), shape)
    m = tile_of(algorithm)
    return _by_rows(m, shape, itemsize) if shape.stride == 2 else _by_tiles(m, shape, itemsize)


def streamed(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> Work:
    """The same with weights packed in every run, a part at a time (`schedule`)."""
    m = tile_of(algorithm)
    by_tile, by_row = (m + 2) ** 2 * STREAMED_TILE, 3 * (m + 2) * STREAMED_ROW
    made = by_tile if shape.stride == 1 else by_row
    taps = shape.kernel**2
    return inference(algorithm, shape, itemsize)._replace(
        weight_bytes=taps * shape.pairs * itemsize,
        kernels=(taps + (made if m else 0)) * shape.pairs,
    )


def training(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> Work:
    """The same in a training step, whose kernels are new each time."""
    if shape.dilation > 1 and algorithm != "direct":
        return _with_copies(training(algorithm, parted(shape), itemsize), shape)
    if algorithm == "direct" or shape.stride == 1:
        return gradient(algorithm, shape, itemsize)
    m = tile_of(algorithm)
    layout = Strips(m, shape.height, shape.width)
    even, odd = (m + 1) * layout.strips, shape.height  # rows, laid out with zeros beside them
    numbers = 2 * shape.channels * (even + odd) + shape.outputs * shape.height
    return _by_rows(m, shape, itemsize)._replace(
        weight_bytes=0,
        cold=shape.images * shape.width * numbers,
        kernels=(9 + 3 * (m + 2)) * shape.pairs,
    )


def gradient(algorithm: Algorithm, shape: ConvShape, itemsize: int) -> Work:
    """The gradient of the weights, which is tiled in both dimensions whatever the stride."""
    if algorithm == "direct":
        return _direct(shape, itemsize)
    tiling = Tiling(tile_of(algorithm), shape.stride, shape.height, shape.width)
    m, t = tiling.m, tiling.t
    tiles = shape.images * tiling.strips * tiling.tiles
    return Work(
        tiles * t * t * shape.pairs,
        cold=tiles * (shape.channels * (tiling.step + t) * t + shape.outputs * (t + m) * t),
        kernels=t * t * shape.pairs,
    )


def _with_copies(work: Work, shape: ConvShape) -> Work:
    """`work`, and what `interleaved` copies."""
    pixels = shape.images * shape.height * shape.width
    return work._replace(cold=work.cold + 2 * pixels * (shape.channels + shape.outputs))


def _direct(shape: ConvShape, itemsize: int) -> Work:
    pixels, taps = shape.images * shape.height * shape.width, shape.kernel**2
    return Work(
        (pixels + PACKING_ROWS) * taps * shape.pairs,
        weight_bytes=taps * shape.pairs * itemsize,
        gathered=pixels * taps * shape.channels,
    )


def _by_tiles(m: int, shape: ConvShape, itemsize: int) -> Work:
    """F(m, 3) in both dimensions (`winograd`)."""
    tiling = Tiling(m, shape.stride, shape.height, shape.width)
    t, tiles = tiling.t, shape.images * tiling.strips * tiling.tiles
    of_x, of_y = (tiling.step + t) * t * t, (t + m) * t * m
    return Work(
        (tiles + PACKING_ROWS) * t * t * shape.pairs,
        weight_bytes=t * t * shape.pairs * itemsize,
        transform_products=tiles * (shape.channels * of_x + shape.outputs * of_y),
    )


def _by_rows(m: int, shape: ConvShape, itemsize: int) -> Work:
    """F(m, 2) down the rows (`winograd_stride_2`)."""
    layout = Strips(m, shape.height, shape.width)
    windows = shape.images * shape.width * layout.products
    of_x, of_y = 2 * (m + 1) ** 2, m * (m + 2)
    return Work(
        (windows + (m + 2) * PACKING_ROWS) * 3 * shape.pairs,
        weight_bytes=3 * (m + 2) * shape.pairs * itemsize,
        transform_products=shape.images
        * layout.strips
        * shape.width
        * (shape.channels * of_x + shape.outputs * of_y),
        gathered=windows * 3 * shape.channels,
        added=shape.images * shape.height * shape.width * shape.outputs,
    )


def cheapest(
    shape: ConvShape,
    itemsize: int,
    *,
    purpose: Literal["inference", "training", "gradient"] = "inference",
) -> Algorithm:
    """The choice with the least estimated time for one of the purposes above."""
    work = {"inference": inference, "training": training, "gradient": gradient}[purpose]
    choices = DEFAULT_CHOICES if purpose == "inference" else TRAINING_CHOICES
    if purpose == "gradient" and shape.dilation > 1:
        return "direct"
    possible = [algorithm for algorithm in choices if applies(algorithm, shape)]
    return min(possible, key=lambda each: seconds(work(each, shape, itemsize)))
