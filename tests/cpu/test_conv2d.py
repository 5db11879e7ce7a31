"""Every algorithm of the fast backend against the reference, float64 and float32, any geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.algorithms import (
    ALGORITHMS,
    Algorithm,
    applies,
    make_convolution,
)
from repvgg_ref.cpu.convolution.layout import interior
from repvgg_ref.cpu.convolution.schedule import ConvShape, Packed
from repvgg_ref.cpu.workers.pool import pool
from repvgg_ref.ops import REFERENCE
from tests.examples import examples

# Largest error over largest output: ten times what was seen in these shapes.
TOLERANCE = {
    (np.float64, "direct"): 1e-14,
    (np.float64, "winograd2"): 1e-14,
    (np.float64, "winograd4"): 5e-14,
    (np.float64, "winograd5"): 1e-13,
    (np.float64, "winograd6"): 2e-13,
    (np.float64, "winograd7"): 5e-13,
}


def run(
    algorithm: Algorithm,
    shape: ConvShape,
    size: tuple[int, int],
    arrays: tuple[Array, Array, Array],
    *,
    relu: bool,
    threads: int,
    fill: float = 0.0,
    streamed: bool = False,
) -> Array:
    """x NHWC, weight, bias -> y NHWC. `fill` lies where nobody may read before writing."""
    x, weight, bias = arrays
    kept: Packed = {}
    convolution = make_convolution(shape, weight, algorithm, threads, kept, "", streamed=streamed)
    assert bool(kept) is not streamed
    padded = [
        max(n + 2 * shape.border, least) for n, least in zip(size, convolution.padded, strict=True)
    ]
    buffer = np.zeros((shape.images, *padded, shape.channels), x.dtype)
    interior(buffer, *size, shape.border)[...] = x
    outer = np.full((shape.images, shape.height + 3, shape.width + 2, shape.outputs), 7, x.dtype)
    y = interior(outer, shape.height, shape.width, 1)
    arena = np.full(convolution.scratch, fill, x.dtype)
    workers = pool(threads)
    with workers.session():
        for stage in convolution.stages(buffer, y, bias, arena, relu=relu):
            workers.run(stage)
    result = y.copy()
    y[...] = 7
    assert (outer == 7).all(), "written outside the output"
    return result


@examples(150)
@given(
    algorithm=st.sampled_from(ALGORITHMS),
    images=st.integers(1, 3),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    groups=st.integers(1, 3),
    channels=st.integers(1, 5),
    outputs=st.sampled_from([1, 2, 5, 32, 64]),
    stride=st.integers(1, 2),
    relu=st.booleans(),
    threads=st.integers(1, 3),
    streamed=st.booleans(),
    fill=st.sampled_from([np.nan, np.finfo(np.float64).max]),  # the latter would warn of overflow
    seed=st.integers(0, 2**32 - 1),
)
def test_every_algorithm_is_the_reference(
    algorithm: Algorithm,
    images: int,
    size: tuple[int, int],
    groups: int,
    channels: int,
    outputs: int,
    stride: int,
    relu: bool,
    threads: int,
    streamed: bool,
    fill: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    height, width = ((n - 1) // stride + 1 for n in size)
    shape = ConvShape(
        images, height, width, groups * channels, groups * outputs, stride=stride, groups=groups
    )
    if not applies(algorithm, shape):
        return
    x = rng.normal(size=(images, *size, shape.channels))
    weight, bias = rng.normal(size=(shape.outputs, channels, 3, 3)), rng.normal(size=shape.outputs)
    how = {"relu": relu, "threads": threads, "fill": fill, "streamed": streamed}
    got = run(algorithm, shape, size, (x, weight, bias), **how)  # type: ignore[arg-type]
    wanted, _ = REFERENCE.conv2d_forward(
        x.transpose(0, 3, 1, 2), weight, bias, stride=stride, padding=1, dilation=1, groups=groups
    )
    wanted = (np.maximum(wanted, 0) if relu else wanted).transpose(0, 2, 3, 1)
    scale = max(1, np.abs(wanted).max())
    error = np.abs(got - wanted).max() / scale
    assert error <= 20 * TOLERANCE[np.float64, algorithm], f"{algorithm}: {error}"


SHAPES: dict[str, dict[str, Any]] = {
    "private": {"images": 2, "size": (40, 44), "channels": 24, "outputs": 48},
    "shared by weights": {"images": 3, "size": (14, 14), "channels": 256, "outputs": 64},
    "shared by tiles": {"images": 1, "size": (14, 14), "channels": 48, "outputs": 96},
    "groups": {"images": 2, "size": (28, 28), "channels": 64, "outputs": 128, "groups": 4},
    "several blocks": {"images": 9, "size": (56, 56), "channels": 200, "outputs": 32},
}


@pytest.mark.few
@pytest.mark.parametrize(
    ("algorithm", "stride"),
    [(a, s) for a in ALGORITHMS for s in (1, 2) if applies(a, ConvShape(1, 9, 9, 1, 1, stride=s))],
)
@pytest.mark.parametrize("name", SHAPES)
def test_error_in_float32(name: str, stride: int, algorithm: Algorithm) -> None:
    """Against float64; ReLU'd inputs, He-scaled weights, as in a trained network."""
    case = dict(SHAPES[name])
    size, groups = case.pop("size"), case.pop("groups", 1)
    height, width = ((n - 1) // stride + 1 for n in size)
    shape = ConvShape(height=height, width=width, stride=stride, groups=groups, **case)
    rng = np.random.default_rng(0)
    inputs = shape.channels // groups
    x = np.maximum(rng.normal(size=(shape.images, *size, shape.channels)), 0).astype(np.float32)
    weight = rng.normal(0, np.sqrt(2 / (9 * inputs)), (shape.outputs, inputs, 3, 3))
    weight, bias = weight.astype(np.float32), rng.normal(0, 0.1, shape.outputs).astype(np.float32)
    how: Any = {"relu": True, "threads": 2, "fill": np.nan}
    wide = tuple(array.astype(np.float64) for array in (x, weight, bias))
    wanted = run("direct", shape, size, wide, relu=True, threads=2)  # type: ignore[arg-type]
    limit = {"direct": 2e-6, "winograd2": 2e-6, "winograd4": 5e-6, "winograd5": 1.2e-5}
    for streamed in (False, True):
        got = run(algorithm, shape, size, (x, weight, bias), **how, streamed=streamed)
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        assert error <= limit.get(algorithm, 4e-5), f"{algorithm}: {error}"
