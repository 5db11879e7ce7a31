"""The oracle's bound for an algorithm holds for ours, and its points are good ones."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.algorithms import ALGORITHMS, Algorithm, applies
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.exact.cook_toom import cook_toom
from repvgg_ref.exact.points import POINTS, POINTS_OF_STRIDE_2, Point
from repvgg_ref.oracle.bounds.block import block_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from tests.cpu.test_conv2d import run
from tests.examples import examples
from tests.oracle.bounds.cases import STATISTICS, random_block
from tests.oracle.bounds.test_block import reference


@examples(60)
@given(
    algorithm=st.sampled_from(ALGORITHMS),
    statistics=st.sampled_from(STATISTICS),
    groups=st.sampled_from([1, 2]),
    stride=st.sampled_from([1, 2]),
    size=st.integers(3, 20),
    channels=st.sampled_from([2, 8, 24]),
    seed=st.integers(0, 2**32 - 1),
    streamed=st.booleans(),
)
def test_the_oracles_bound_holds(
    algorithm: Algorithm,
    statistics: str,
    groups: int,
    stride: int,
    size: int,
    channels: int,
    seed: int,
    streamed: bool,
) -> None:
    rng = np.random.default_rng(seed)
    program, x = random_block(
        rng,
        data="normal",
        statistics=statistics,
        groups=groups,
        stride=stride,
        size=size,
        channels=channels,
        deploy=True,
    )
    weight, bias = (array.astype(np.float32) for array in program.fused_kernel())
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).astype(np.float32)
    images, inputs, height, width = x.shape
    shape = ConvShape(
        images,
        -(-height // stride),
        -(-width // stride),
        inputs,
        len(weight),
        stride=stride,
        groups=groups,
    )
    assume(applies(algorithm, shape))
    arrays = nhwc, weight, bias
    y_hat = run(algorithm, shape, (height, width), arrays, relu=True, threads=2, streamed=streamed)
    y = reference(program, x)
    bound = block_bound(program, x, y, PRECISIONS["fp32"], algorithm=algorithm)
    error = np.abs(y_hat.transpose(0, 3, 1, 2) - y)
    assert (error <= bound.certified).all()


def amplification(points: tuple[Point, ...], taps: int = 3) -> float:
    """Sum over points of ``|a_p| |b_p| |g_p|``, Euclidean: what roundings are multiplied by."""
    a, b, g = (np.array(rows, dtype=float) for rows in cook_toom(points, taps))
    norms = (np.linalg.norm(part, axis=1) for part in (a, b.T, g))
    return float(np.prod(list(norms), axis=0).sum())


@pytest.mark.parametrize(
    ("m", "usual"),
    [
        (4, (0, 1, -1, 2, -2, math.inf)),
        (5, (0, 1, -1, 2, -2, 0.5, math.inf)),
        (7, (0, 1, -1, 2, -2, 0.5, -0.5, 4, math.inf)),
    ],
)
def test_our_points_amplify_less_than_the_usual_ones(m: int, usual: tuple[Point, ...]) -> None:
    assert amplification(POINTS[m]) < 0.9 * amplification(usual)


@pytest.mark.parametrize(("m", "beside"), [(4, (0,)), (7, (0, math.inf))])
def test_no_small_fractions_serve_stride_2_better(m: int, beside: tuple[Point, ...]) -> None:
    """Of 0, infinity where there is one, and pairs of fractions of opposite sign."""
    sizes = [Fraction(n, 4) for n in range(1, 17)]
    least = min(
        amplification((*beside, *(sign * p for p in pairs for sign in (1, -1))), taps=2)
        for pairs in combinations(sizes, m // 2)
    )
    assert amplification(POINTS_OF_STRIDE_2[m], taps=2) == least


def test_float32_error_grows_with_the_tile() -> None:
    """Measured against float64 on ReLU'd data, 256 channels: the figures that the docs state."""
    rng = np.random.default_rng(0)
    shape = ConvShape(2, 30, 30, 256, 64)
    x = np.maximum(rng.normal(size=(2, 30, 30, 256)), 0).astype(np.float32)
    weight = rng.normal(0, np.sqrt(2 / 2304), (64, 256, 3, 3)).astype(np.float32)
    bias = np.zeros(64, np.float32)
    wide: tuple[Array, Array, Array] = (
        x.astype(np.float64),
        weight.astype(np.float64),
        bias.astype(np.float64),
    )
    y = run("direct", shape, (30, 30), wide, relu=False, threads=2)
    limits = {
        "direct": 2e-6,
        "winograd2": 2e-6,
        "winograd4": 5e-6,
        "winograd5": 1.2e-5,
        "winograd6": 4e-5,
    }
    for algorithm in ALGORITHMS:
        y_hat = run(algorithm, shape, (30, 30), (x, weight, bias), relu=False, threads=2)
        error = np.abs(y_hat - y).max() / np.abs(y).max()
        assert error <= limits.get(algorithm, 1e-4), f"{algorithm}: {error}"
