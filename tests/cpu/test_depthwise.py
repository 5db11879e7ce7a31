"""Depthwise convolutions and gated graphs on the fast table, against the reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.convolution import depthwise
from repvgg_ref.cpu.convolution.algorithms import ALGORITHMS, applies
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.gated import gate, silu_steps
from repvgg_ref.cpu.graph import GraphEngine, is_known
from repvgg_ref.models.efficientnet import efficientnet
from repvgg_ref.models.gated import Gate
from repvgg_ref.models.layers import Pass
from repvgg_ref.models.network import fuse
from repvgg_ref.ops import REFERENCE
from tests.models.small import distinct_model

# images, height, width, channels, kernel, stride, dilation
SHAPES = (
    (2, 9, 11, 5, 3, 1, 1),
    (1, 10, 7, 6, 5, 2, 1),
    (2, 15, 9, 8, 5, 1, 2),
    (1, 3, 2, 4, 5, 2, 1),
    (1, 1, 1, 300, 3, 1, 1),
    (2, 6, 5, 300, 3, 2, 1),
)


def assert_same(got: Array, wanted: Array) -> None:
    assert not (np.abs(got.transpose(0, 3, 1, 2) - wanted).max() > 1e-13)


@pytest.mark.parametrize(("shape", "few"), list(product(SHAPES, (False, True))))
def test_both_passes_equal_the_references(
    shape: Any, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block, and in blocks of one row."""
    if few:
        monkeypatch.setattr(depthwise, "NUMBERS", 1)
    images, height, width, channels, kernel, stride, dilation = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, channels, height, width))
    weight = rng.standard_normal((channels, 1, kernel, kernel))
    bias = rng.standard_normal(channels)
    how: Any = {"stride": stride, "dilation": dilation, "groups": channels}
    how["padding"] = kernel // 2 * dilation
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    wanted, their_cache = REFERENCE.conv2d_forward(x, weight, bias, **how)
    got, cache = NUMPY.conv2d_forward(nhwc, weight, bias, **how)
    assert_same(got, wanted)
    assert_same(NUMPY.conv_bias_relu_forward(nhwc, weight, bias, **how), np.maximum(wanted, 0))
    grad_y = rng.standard_normal(wanted.shape)
    theirs = REFERENCE.conv2d_backward(grad_y, their_cache)
    ours = NUMPY.conv2d_backward(np.ascontiguousarray(grad_y.transpose(0, 2, 3, 1)), cache)
    assert_same(ours.grad_x, theirs.grad_x)
    assert not (np.abs(ours.grad_weight - theirs.grad_weight).max() > 1e-12)


def test_only_one_kernel_a_channel_is_depthwise() -> None:
    deep = ConvShape(1, 4, 4, 8, 8, groups=8)
    assert depthwise.is_depthwise(deep)
    assert [each for each in ALGORITHMS if applies(each, deep)] == ["direct"]
    for other in (ConvShape(1, 4, 4, 8, 8, groups=4), ConvShape(1, 4, 4, 8, 16, groups=8)):
        assert not depthwise.is_depthwise(other)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_gated_graph_is_computed_whole(threads: int) -> None:
    model = fuse(distinct_model(efficientnet("small", width=0.125, depth=0.4, dropout=0.2)))
    assert is_known(model.arch)
    x = np.random.default_rng(0).standard_normal((2, 3, 41, 36))
    engine = GraphEngine(model.arch, model.params, dtype=x.dtype, threads=threads)
    wanted = model.forward(x, backend="reference", layers=True)
    got = engine.layers(x)
    assert got.keys() == wanted.keys()
    for name, y in wanted.items():
        assert not (np.abs(got[name] - y).max() > 1e-12 * np.abs(y).max()), name
    assert (engine.forward(x) == got["linear"]).all()  # buffers that hold an earlier run


def test_silu_of_large_numbers_neither_overflows_nor_warns() -> None:
    x = np.array([-1e30, -200.0, -1.0, 0.0, 1.0, 200.0, 1e30], np.float32)
    y = np.empty_like(x)
    for step in silu_steps(x, y):
        step()
    wanted = REFERENCE.silu_forward(x)[0]
    assert not (np.abs(y[1:] - wanted[1:]) > 1e-6 * np.abs(wanted[1:]) + 1e-30).any()


def test_a_gate_may_be_written_over_its_input() -> None:
    rng = np.random.default_rng(0)
    params = {
        f"g.{name}": rng.standard_normal(shape)
        for name, shape in Gate(6, 2).shapes("train").items()
    }
    x = rng.standard_normal((5, 4, 6))
    wanted = Gate(6, 2).forward("g", [x[None]], Pass(params, NUMPY, 0.0))[0][0]
    gate("g", x, params, x)
    assert not (np.abs(x - wanted).max() > 1e-14)
