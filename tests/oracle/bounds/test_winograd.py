"""Winograd's algorithm stays within its own bound, whichever library's matrices it uses."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repvgg_ref.exact import points as engine_points
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.block import Algorithm, block_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bounds.winograd import (
    POINTS,
    POINTS_OF_STRIDE_2,
    _by_rows,
    _of_variant,
    transforms,
    winograd_magnitudes,
)
from tests.examples import examples
from tests.oracle.bounds.arithmetic import ARITHMETICS
from tests.oracle.bounds.cases import DATA, STATISTICS, random_block
from tests.oracle.bounds.test_block import reference, used
from tests.oracle.bounds.winograd import PRINTED, winograd_block

ALGORITHMS: dict[int, Algorithm] = {2: "winograd2", 4: "winograd4", 6: "winograd6"}


@examples(150)
@example(13311, 4, "wide", "gamma 0", 2, "fp16", 3, "G")  # weights underflow when transformed
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.sampled_from(sorted(ALGORITHMS)),
    data=st.sampled_from(DATA),
    statistics=st.sampled_from(STATISTICS),
    groups=st.sampled_from([1, 2]),
    arithmetic=st.sampled_from(["fp32", "fp32-flushed", "bf16", "fp16", "fp16-acc16"]),
    size=st.integers(3, 9),
    scaled=st.sampled_from("GBA"),
)
def test_winograd_stays_within_its_bound(
    seed: int,
    m: int,
    data: str,
    statistics: str,
    groups: int,
    arithmetic: str,
    size: int,
    scaled: str,
) -> None:
    a = ARITHMETICS[arithmetic]
    program, x = random_block(
        np.random.default_rng(seed),
        data=data,
        statistics=statistics,
        groups=groups,
        size=size,
        smallest=2.0**-25 if a.precision.startswith("fp16") else 2.0**-140,
    )
    y = reference(program, x)
    bound = block_bound(program, x, y, PRECISIONS[a.precision], algorithm=ALGORITHMS[m])
    used(winograd_block(program, x, m, a, scaled), y, bound)


@pytest.mark.parametrize("m", [4, 6])
def test_winograd_breaks_the_bound_of_direct_summation(m: Literal[4, 6]) -> None:
    """Else the constant would be of no use: cancellation in the transforms is not in |W| * |x|."""
    rng = np.random.default_rng(m)
    program, x = random_block(rng, data="normal", deploy=True, channels=1, size=24)
    x[..., ::2] *= 1e4
    y = reference(program, x)
    bound = block_bound(program, x, y, PRECISIONS["fp32"])
    error = np.abs(winograd_block(program, x, m, ARITHMETICS["fp32"]) - y)
    assert (error > bound.certified).any()
    allowed = block_bound(program, x, y, PRECISIONS["fp32"], algorithm=ALGORITHMS[m])
    assert (error <= allowed.certified).all()


def test_the_points_of_our_engine_are_among_those_that_are_allowed_for() -> None:
    """The judge states its points itself: an engine that takes others is no longer excused."""
    for m, points in engine_points.POINTS.items():
        assert any(set(points) == set(known) for known in POINTS[m])
    for m, points in engine_points.POINTS_OF_STRIDE_2.items():
        assert set(points) == set(POINTS_OF_STRIDE_2[m])


@pytest.mark.parametrize("m", sorted(POINTS))
def test_the_matrices_convolve(m: int) -> None:
    rng = np.random.default_rng(m)
    d, g = rng.normal(size=m + 2), rng.normal(size=3)
    for points in POINTS[m]:
        t = transforms(points)
        assert np.allclose(t.a.T @ ((t.g @ g) * (t.b.T @ d)), np.correlate(d, g), atol=1e-12)


@pytest.mark.parametrize("m", sorted(PRINTED))
def test_our_matrices_are_the_printed_ones_up_to_scale(m: int) -> None:
    """The products that a bound is made of are the same: scales cancel in absolute values."""
    bt, g, at = (np.abs(np.asarray(matrix, np.float64)) for matrix in PRINTED[m])
    ours = transforms(POINTS[m][0])
    a, b, w = (np.abs(matrix) for matrix in ours)
    products = np.einsum("ij,jk,jl->ijkl", at, g, bt)
    assert np.allclose(products.sum(axis=1), np.einsum("ji,jk,lj->ikl", a, w, b), atol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "stride", "dilation"),
    [("winograd6", 2, 1), ("winograd4", 1, 2)],
    ids=["F(6, 3) with stride 2", "dilated"],
)
def test_winograd_is_only_assumed_where_it_applies(
    algorithm: Algorithm, stride: int, dilation: int
) -> None:
    rng = np.random.default_rng(0)
    program, x = random_block(rng, data="normal", stride=stride, dilation=dilation)
    y = reference(program, x)
    direct = block_bound(program, x, y, PRECISIONS["fp32"])
    asked = block_bound(program, x, y, PRECISIONS["fp32"], algorithm=algorithm)
    assert (direct.certified == asked.certified).all()


TILES = [*((m, 1) for m in sorted(POINTS)), *((m, 2) for m in POINTS_OF_STRIDE_2)]


@pytest.mark.parametrize(("m", "stride"), TILES)
def test_the_sums_are_those_of_the_algorithm(m: int, stride: int) -> None:
    """With signs they are the convolution, so that no product is missing among the magnitudes."""
    rng = np.random.default_rng(m)
    size = 7, 5
    x = rng.normal(size=(4, *(stride * (n - 1) + 3 for n in size)))
    weight = rng.normal(size=(6, 2, 3, 3))
    if stride == 1:
        matrices, of_tiles = transforms(POINTS[m][0]), _of_variant
    else:
        matrices, of_tiles = transforms(POINTS_OF_STRIDE_2[m], 2), _by_rows
    signed, _ = of_tiles(x, weight, 2, size, matrices)
    wanted, _ = REFERENCE.conv2d_forward(
        x[None], weight, None, stride=stride, padding=0, dilation=1, groups=2
    )
    assert np.abs(signed.reshape(wanted[0].shape) - wanted[0]).max() <= 1e-10


@pytest.mark.parametrize(("m", "stride"), TILES)
def test_the_magnitude_is_at_least_that_of_direct_summation(m: int, stride: int) -> None:
    """So one array serves the 3x3 kernel by Winograd and the 1x1 branch beside it."""
    rng = np.random.default_rng(m)
    x, weight = np.abs(rng.normal(size=(4, 9, 8))), np.abs(rng.normal(size=(6, 2, 3, 3)))
    size = (-(-7 // stride), -(-6 // stride))
    magnitude, _ = winograd_magnitudes(x, weight, 2, size, m, stride)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    for o, kernel in enumerate(weight):
        first = o // 3 * 2
        direct = np.einsum("chwij,cij->hw", windows[first : first + 2], kernel)
        assert (magnitude[o].reshape(size) >= direct * (1 - 1e-12)).all()
