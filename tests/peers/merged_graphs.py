"""ONNX graphs whose linear parts become one convolution each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.peers.linear_graphs import Graph, X

MERGED: dict[str, Callable[[], Any]] = {}


def merged(function: Callable[[], Any]) -> Callable[[], Any]:
    """Enter a graph, or one and the fewest convolutions that it comes to."""
    MERGED[function.__name__] = function
    return function


@merged
def pointwise_before_padded() -> Any:
    g = Graph()
    y = g.conv(g.conv(X, 4, 8, 1), 8, 6, 3, bias=True)
    return g.model(4, g.relu(g.bn(y, 6)))


@merged
def two_without_padding() -> Any:
    g = Graph()
    y = g.conv_bn(g.conv_bn(X, 2, 8, 3, pads=[0] * 4), 8, 6, 3, pads=[0] * 4)
    return g.model(2, g.relu(y))


@merged
def pointwise_behind_strided_and_dilated() -> Any:
    g = Graph()
    y = g.conv(X, 4, 8, 3, strides=[2, 1], dilations=[1, 2])
    return g.model(4, g.relu(g.conv_bn(y, 8, 4, 1)))


@merged
def average_behind_a_convolution() -> Any:
    g = Graph()
    y = g.conv_bn(X, 4, 8, 1)
    y = g.node("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    return g.model(4, g.relu(y))


@merged
def padded_average_in_a_sum() -> Any:
    g = Graph()
    pooled = g.node("AveragePool", X, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return g.model(6, g.relu(g.add(g.conv_bn(X, 6, 6), g.bn(pooled, 6))))


@merged
def average_of_a_pointwise_branch() -> Any:
    g = Graph()
    y = g.node(
        "AveragePool", g.conv(X, 4, 6, 1), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    )
    return g.model(4, g.relu(g.add(g.conv_bn(X, 4, 6), g.bn(y, 6))))


@merged
def scaled_images() -> Any:
    g = Graph()
    y = g.node("Div", X, g.constant(np.array([0.3, 3.0, 7.0], np.float32).reshape(1, 3, 1, 1)))
    y = g.node("Mul", g.constant(np.float32(1 / 255), node=True), y)
    return g.model(3, g.relu(g.conv_bn(y, 3, 6, 3, strides=[2, 2])))


@merged
def shifted_images_before_a_convolution_without_padding() -> Any:
    g = Graph()
    y = g.node("Sub", X, g.drawn(1, 3, 1, 1))
    y = g.node("Div", y, g.drawn(3, 1, 1, node=True))
    return g.model(3, g.relu(g.conv(y, 3, 8, 4, strides=[4, 4], pads=[0] * 4, bias=True)))


@merged
def differences_and_constants_on_the_left() -> Any:
    g = Graph()
    y = g.node("Sub", g.conv(X, 4, 4), g.node("Neg", g.node("Mul", X, g.drawn(4, 1, 1))))
    y = g.node("Sub", g.drawn(1, 4, 1, 1), y)
    return g.model(4, g.relu(g.node("Sub", y, g.conv(X, 4, 4, 1))))


@merged
def groups_convolved_one_by_one() -> Any:
    g = Graph()
    halves = g.node("Split", X, g.constant(np.array([4, 4])), outputs=2, axis=1)
    y = g.node("Concat", *(g.conv_bn(half, 4, 6) for half in halves), axis=1)
    return g.model(8, g.relu(g.bn(y, 12)))


@merged
def channels_put_together() -> Any:
    g = Graph()
    y = g.node("Concat", g.conv_bn(X, 4, 3), g.conv(X, 4, 5, bias=True), axis=-3)
    return g.model(4, g.relu(y))


@merged
def part_of_the_channels() -> Any:
    g = Graph()
    y = g.conv_bn(X, 4, 8)
    bounds = (g.constant(np.array([n])) for n in (2, -1, 1))
    return g.model(4, g.relu(g.node("Slice", y, *bounds)))


@merged
def a_border_of_zeros_apart() -> Any:
    g = Graph()
    y = g.node("Pad", X, g.constant(np.array([0, 0, 1, 2, 0, 0, 1, 2])))
    return g.model(4, g.relu(g.conv_bn(y, 4, 6, (3, 5), pads=[0] * 4)))


@merged
def padding_as_torch_writes_it() -> Any:
    """`F.pad` counts from the last axis on, and its export turns the numbers round in the graph."""
    g = Graph()
    others = g.node(
        "ConstantOfShape",
        g.constant(np.array([4])),
        value=onnx.numpy_helper.from_array(np.array([0])),
    )
    pairs = g.node("Concat", g.constant(np.array([1, 1, 2, 0])), others, axis=0)
    pairs = g.node("Reshape", pairs, g.constant(np.array([-1, 2])))
    ends = (g.constant(np.array([each])) for each in (-1, -(2**62), 0, -1))
    turned = g.node("Transpose", g.node("Slice", pairs, *ends), perm=[1, 0])
    pads = g.node("Cast", g.node("Reshape", turned, g.constant(np.array([-1]))), to=7)
    y = g.conv_bn(g.node("Pad", X, pads), 4, 6, 3, pads=[0] * 4)
    return g.model(4, g.relu(g.add(y, g.conv_bn(X, 4, 6, 1))))


@merged
def an_identity_cut_to_size() -> Any:
    """As where padding is avoided: a 3x3 beside what is left of the input."""
    g = Graph()
    start, end, axes = (g.constant(np.array(n)) for n in ([1, 1], [-1, -1], [2, 3]))
    y = g.add(g.conv_bn(X, 4, 4, pads=[0] * 4), g.node("Slice", X, start, end, axes))
    return g.model(4, g.relu(y), size=None)


@merged
def every_other_pixel() -> Any:
    g = Graph()
    big = 2**63 - 1
    words = ([0, 0], [big, big], [2, 3], [2, 2])
    thinned = g.node("Slice", X, *(g.constant(np.array(n)) for n in words))
    y = g.add(g.conv_bn(X, 4, 4, strides=[2, 2]), g.bn(thinned, 4))
    return g.model(4, g.relu(y))


@merged
def tensorflows_same_with_stride_2() -> Any:
    """Padding below and right only: the 1x1 sits on the first tap."""
    g = Graph()
    y = g.add(
        g.conv_bn(X, 4, 6, strides=[2, 2], auto_pad="SAME_UPPER"),
        g.conv_bn(X, 4, 6, 1, strides=[2, 2], pads=[0] * 4),
    )
    return g.model(4, g.relu(y), size=(10, 12))


@merged
def what_changes_nothing() -> Any:
    g = Graph()
    y = g.node("Identity", g.conv(g.node("Identity", X), 4, 6))
    y = g.node("Dropout", g.node("Cast", y, to=onnx.TensorProto.FLOAT))
    return g.model(4, g.relu(g.bn(y, 6)))


@merged
def a_kernel_that_is_computed_of_constants() -> Any:
    g = Graph()
    weight = g.node("Mul", g.drawn(6, 4, 3, 3), g.drawn(6, 1, 1, 1, node=True))
    weight = g.node("Transpose", g.node("Transpose", weight, perm=[1, 0, 2, 3]), perm=[1, 0, 2, 3])
    return g.model(4, g.relu(g.bn(g.conv(X, 4, 6, weight=weight), 6)))


@merged
def a_shared_kernel() -> Any:
    """One initializer in two branches, which another place keeps."""
    g = Graph()
    weight = g.drawn(4, 4, 3, 3)
    y = g.relu(g.add(g.conv_bn(X, 4, 4, weight=weight), g.bn(g.conv(X, 4, 4, weight=weight), 4)))
    return g.model(4, g.relu(g.conv(y, 4, 4, weight=weight))), 2


@merged
def a_sum_of_a_tensor_with_itself() -> Any:
    g = Graph()
    y = g.conv(X, 4, 4)
    return g.model(4, g.relu(g.node("Sum", y, y, X)))


@merged
def a_tap_in_between() -> Any:
    """A branch that leaves the graph is kept; the others go together."""
    g = Graph()
    tapped = g.conv_bn(X, 4, 4)
    rest = g.add(g.conv_bn(X, 4, 4), g.conv_bn(X, 4, 4, 1), g.bn(X, 4))
    return g.model(4, tapped, g.relu(g.add(tapped, rest))), 2


@merged
def several_blocks_and_consumers() -> Any:
    g = Graph()
    y = g.relu(g.add(g.conv_bn(X, 4, 4), g.conv_bn(X, 4, 4, 1)))
    left = g.relu(g.add(g.conv_bn(y, 4, 4, group=2), g.bn(y, 4)))
    right = g.conv_bn(y, 4, 4, 1)
    return g.model(4, g.add(left, right), right), 3


@merged
def older_opsets() -> Any:
    """Attributes where there are inputs today; IR 3, whose initializers are inputs."""
    g = Graph()
    y = g.node("Pad", X, pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0)
    y = g.bn(g.conv(y, 4, 6, pads=[0] * 4), 6)
    return g.model(4, g.relu(g.node("Slice", y, axes=[1], starts=[0], ends=[4])), opset=9, ir=3)


@merged
def terms_apart() -> Any:
    """A sum in whose order no two terms are of one source."""
    g = Graph()
    z = g.relu(g.conv(X, 4, 4, 1))
    y = g.add(g.conv_bn(X, 4, 4), z, g.conv_bn(X, 4, 4, 1), g.conv_bn(z, 4, 4), X)
    return g.model(4, g.relu(y)), 3


@merged
def two_readers_of_what_both_can_take_in() -> Any:
    """A 1x1 behind which are two padded convolutions, one with its norm."""
    g = Graph()
    y = g.conv(X, 4, 8, 1)
    left, right = g.relu(g.conv_bn(y, 8, 6)), g.relu(g.conv(y, 8, 6, bias=True))
    return g.model(4, g.add(left, right)), 2


@merged
def a_stride_two_convolutions_back() -> Any:
    """The check reads pixel t of the last through both before it: at 2 t of the images."""
    g = Graph()
    y = g.conv(g.conv(X, 4, 4, 1, strides=[2, 2]), 4, 4, 1)
    return g.model(4, g.relu(g.conv(y, 4, 4, 3, pads=[0] * 4)))


@merged
def strides_that_differ_far_back() -> Any:
    g = Graph()
    y = g.conv(g.node("Neg", X), 4, 4, 1, strides=[2, 1])
    y = g.node("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    return g.model(4, g.relu(g.conv(y, 4, 4, (2, 1), strides=[2, 1], auto_pad="VALID")))
