"""ONNX graphs that must stay as they are, and the reason that is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.peers.linear_graphs import Graph, X

Build = Callable[[], Any]
STAYS: dict[str, tuple[Build, str]] = {}


def stays(reason: str) -> Callable[[Build], Build]:
    """Enter a graph that must stay, and why."""

    def enter(function: Build) -> Build:
        STAYS[function.__name__] = function, reason
        return function

    return enter


@stays("shifted: one convolution would see the shift there")
def norm_before_padding() -> Any:
    g = Graph()
    return g.model(4, g.relu(g.conv(g.bn(X, 4), 4, 6)))


@stays("shifted: one convolution would see the shift there")
def pointwise_with_bias_before_padding() -> Any:
    g = Graph()
    return g.model(4, g.relu(g.conv(g.conv(X, 4, 4, 1, bias=True), 4, 4)))


@stays("the output of a 3x3 convolution")
def padding_behind_a_3x3() -> Any:
    g = Graph()
    return g.model(2, g.relu(g.conv(g.conv(X, 2, 8), 8, 8)))


@stays("different places")
def a_relu_in_a_branch() -> Any:
    g = Graph()
    return g.model(4, g.relu(g.add(g.relu(g.conv(X, 4, 4)), g.conv(X, 4, 4, 1))))


@stays("no convolution that could take it in")
def a_norm_behind_a_relu() -> Any:
    g = Graph()
    return g.model(4, g.bn(g.relu(g.conv(X, 4, 4)), 4))


@stays("is an output of the graph, and would be computed twice")
def a_convolution_that_leaves_the_graph() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    return g.model(4, y, g.relu(g.bn(y, 4)))


@stays("is read by n1, n3, and would be computed twice")
def a_convolution_that_others_read() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    return g.model(4, g.relu(g.bn(y, 4)), g.relu(y))


@stays("neither Conv0 nor Sigmoid1 is a constant")
def a_gate() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    return g.model(4, g.node("Mul", y, g.node("Sigmoid", y)))


@stays("multiply-accumulates a pixel in place of")
def depthwise_and_pointwise() -> Any:
    g = Graph()
    return g.model(8, g.relu(g.conv(g.conv(X, 8, 8, group=8), 8, 8, 1)))


@stays("multiply-accumulates a pixel in place of")
def a_bottleneck() -> Any:
    g = Graph()
    return g.model(16, g.relu(g.conv(g.conv(X, 16, 2, 1), 2, 16)))


@stays("multiply-accumulates a pixel in place of")
def average_before_a_pointwise() -> Any:
    g = Graph()
    y = g.node("AveragePool", X, kernel_shape=[2, 2], strides=[2, 2])
    return g.model(4, g.relu(g.conv(y, 4, 8, 1)))


@stays("does not count its padding")
def an_average_without_its_padding() -> Any:
    g = Graph()
    y = g.node("AveragePool", g.conv(X, 4, 4, 1), kernel_shape=[3, 3], pads=[1] * 4)
    return g.model(4, g.relu(y))


@stays("it rounds sizes up")
def an_average_that_rounds_up() -> Any:
    g = Graph()
    y = g.node("AveragePool", g.conv(X, 4, 4, 1), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return g.model(4, g.relu(y))


@stays("its border is 1.0, not what is zero continued")
def a_border_of_ones() -> Any:
    g = Graph()
    y = g.node("Pad", X, g.constant(np.array([0, 0, 1, 1] * 2)), g.constant(np.float32(1)))
    return g.model(4, g.relu(g.conv(y, 4, 4, pads=[0] * 4)))


@stays("its border is no constant: reflect")
def a_mirrored_border() -> Any:
    g = Graph()
    y = g.node("Pad", X, g.constant(np.array([0, 0, 1, 1] * 2)), mode="reflect")
    return g.model(4, g.relu(g.conv(y, 4, 4, pads=[0] * 4)))


@stays("no number a channel")
def a_number_for_each_column() -> Any:
    g = Graph()
    return g.model(4, g.relu(g.node("Mul", g.conv(X, 4, 4), g.drawn(12))), size=(10, 12))


@stays("its constant has 4 channels, its input 1")
def a_constant_that_makes_channels() -> Any:
    g = Graph()
    return g.model(4, g.relu(g.node("Add", g.conv(X, 4, 1), g.drawn(4, 1, 1))))


@stays("it divides by zero")
def a_division_by_zero() -> Any:
    g = Graph()
    return g.model(4, g.node("Clip", g.node("Div", g.conv(X, 4, 4), g.constant(np.float32(0)))))


@stays("its border (SAME_UPPER) depends on the image's size, which is open")
def same_padding_of_open_size() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4, strides=[2, 2], auto_pad="SAME_UPPER")
    return g.model(4, g.relu(g.bn(y, 4)))


@stays("grow differently at the border")
def sums_that_fit_by_chance() -> Any:
    """Padding (0, 1) of a stride of 2 fits a 1x1 where sizes are even: nothing says so here."""
    g = Graph()
    y = g.add(
        g.conv(X, 4, 4, strides=[2, 2], pads=[0, 0, 1, 1]),
        g.conv(X, 4, 4, 1, strides=[2, 2], pads=[0] * 4),
    )
    return g.model(4, g.relu(y))


@stays("its kernel is no constant, or a quantised one")
def a_quantised_kernel() -> Any:
    g = Graph()
    scale, zero = g.constant(np.float32(0.1)), g.constant(np.int8(0))
    stored = g.constant(g.rng.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8))
    weight = g.node("DequantizeLinear", stored, scale, zero)
    return g.model(4, g.relu(g.bn(g.conv(X, 4, 4, weight=weight), 4)))


@stays("it rounds, or widens: float32 to float16")
def a_cast_that_rounds() -> Any:
    g = Graph()
    y = g.node("Cast", g.conv(X, 4, 4), to=onnx.TensorProto.FLOAT16)
    y = g.node("Cast", y, to=onnx.TensorProto.FLOAT)
    return g.model(4, g.relu(y))


@stays("NaN or infinity")
def a_norm_that_is_not_finite() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    vectors = [np.ones(4, np.float32) for _ in range(4)]
    vectors[1][2] = np.nan
    return g.model(4, g.relu(g.node("BatchNormalization", y, *map(g.constant, vectors))))


@stays("is read by what stays as well")
def one_of_two_readers_is_not_finite() -> Any:
    """Together they could do without the 1x1."""
    g = Graph()
    y = g.conv(X, 4, 8, 1)
    vectors = [np.ones(6, np.float32) for _ in range(4)]
    vectors[2][5] = np.inf
    left = g.node("BatchNormalization", g.conv(y, 8, 6), *map(g.constant, vectors))
    return g.model(4, g.add(g.relu(left), g.relu(g.conv(y, 8, 6, bias=True))))


@stays("is read by n1, n3, and would be computed twice")
def two_readers_that_would_cost_more() -> Any:
    """The same with fewer channels in the middle."""
    g = Graph()
    y = g.conv(X, 8, 4, 1)
    return g.model(8, g.add(g.relu(g.conv(y, 4, 6)), g.relu(g.conv(y, 4, 6))))


@stays("nothing is left of images of this size")
def a_3x3_on_images_of_2x2() -> Any:
    g = Graph()
    return g.model(4, g.conv_bn(X, 4, 4, pads=[0] * 4), size=(2, 2))
