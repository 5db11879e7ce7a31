"""Dilated convolutions by pictures of every d-th pixel, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.convolution.algorithms import make_convolution
from repvgg_ref.cpu.convolution.cost import cheapest
from repvgg_ref.cpu.convolution.interleaved import Interleaved, parted
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.workers.pool import pool
from repvgg_ref.ops import REFERENCE

# images, height, width, channels, outputs, dilation, groups
SHAPES = [
    (1, 9, 12, 4, 6, 2, 1),
    (2, 11, 7, 6, 4, 2, 2),
    (1, 13, 10, 3, 5, 4, 1),
    (1, 3, 2, 2, 2, 4, 1),  # fewer rows than are apart
    (1, 10, 11, 4, 4, 3, 1),
]


def arrays(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(sum(shape))
    images, height, width, channels, outputs, _, groups = shape
    weight = rng.normal(size=(outputs, channels // groups, 3, 3))
    return rng.normal(size=(images, channels, height, width)), weight, rng.normal(size=outputs)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize("border", ["held", "outside"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_references(shape: tuple[int, ...], border: str, algorithm: Any) -> None:
    """Whether the border of zeros is part of x, or lies outside of it."""
    images, height, width, channels, outputs, dilation, groups = shape
    x, weight, bias = arrays(shape)
    wide = {"stride": 1, "padding": dilation, "dilation": dilation, "groups": groups}
    wanted = np.maximum(REFERENCE.conv2d_forward(x, weight, bias, **wide)[0], 0)
    of = ConvShape(images, height, width, channels, outputs, dilation=dilation, groups=groups)
    team = pool()
    conv = make_convolution(of, weight, algorithm, team.threads, {}, "")
    assert isinstance(conv, Interleaved)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if border == "held":
        nhwc = np.pad(nhwc, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
        assert nhwc.shape[1:3] == conv.padded
    y = np.full((images, height, width, outputs), np.nan)
    arena = np.full(conv.scratch, np.nan)
    outside = 0 if border == "held" else dilation
    with team.session():
        for _ in range(2):  # the second time on what the first has left in scratch
            for stage in conv.stages(nhwc, y, bias, arena, relu=True, border=outside):
                team.run(stage)
            error = np.abs(y.transpose(0, 3, 1, 2) - wanted).max()
            assert error <= 1e-9 * np.abs(wanted).max()


@pytest.mark.parametrize("padding", [0, 1, 3, 4, 5])
def test_other_borders_than_the_dilation_are_the_references(padding: int) -> None:
    x, weight, _ = arrays((1, 14, 15, 8, 8, 4, 1))
    how: dict[str, Any] = {"stride": 1, "padding": padding, "dilation": 4, "groups": 1}
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    wanted, _ = REFERENCE.conv2d_forward(x, weight, None, **how)
    got, _ = NUMPY.conv2d_forward(
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)), weight, None, **how
    )
    assert np.abs(got.transpose(0, 3, 1, 2) - wanted).max() <= 1e-4


def test_pictures_of_a_dilated_stage_are_convolved_fast() -> None:
    """As they are of PSPNet's: 90 x 90 pixels, 192 channels and more."""
    shape = ConvShape(1, 90, 90, 192, 192, dilation=2)
    assert parted(shape) == ConvShape(4, 45, 45, 192, 192)
    assert cheapest(shape, 4).startswith("winograd")
    assert cheapest(shape, 4, purpose="gradient") == "direct"
