"""Any ONNX graph: linear parts become one convolution each; what must not be merged stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from repvgg_ref.files.convert_graph import GraphConversion, convert_graph, inspect_graph
from tests.peers.linear_graphs import Graph, X, operators, run, saved

pytestmark = pytest.mark.peers

Built = tuple[Any, int]  # a model, and the fewest convolutions


def fused(folder: Path, model: Any) -> tuple[GraphConversion, Any]:
    done = convert_graph(saved(folder / "in.onnx", model), folder / "out.onnx")
    result = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(result, full_check=True)
    return done, result


def require_equal_outputs(model: Any, result: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """At every pixel, within rounding of sums of some hundred terms."""
    x = np.random.default_rng(7).normal(size=shape).astype(dtype)
    tolerance = 200 * float(np.finfo(dtype).eps)
    for want, got in zip(run(model, x), run(result, x), strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        scale = np.abs(want.astype(np.float64)).max()
        error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
        assert error <= tolerance * scale


# ------------------------------------------------------------------------------ what is merged

MERGED: dict[str, Callable[[], Any]] = {}


def merged(function: Callable[[], Any]) -> Callable[[], Any]:
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


@pytest.mark.parametrize("name", MERGED)
def test_every_linear_part_becomes_one_convolution(name: str, tmp_path: Path) -> None:
    built = MERGED[name]()
    model, fewest = built if isinstance(built, tuple) else (built, 1)
    done, result = fused(tmp_path, model)
    assert (done.convs_after, operators(result).count("Conv")) == (fewest, fewest)
    assert not set(operators(result)) - {"Conv", "Relu", "Add"}
    shape = model.graph.input[0].type.tensor_type.shape.dim
    for height, width in [(10, 12), (9, 13)][: 2 - bool(shape[2].dim_value)]:
        require_equal_outputs(model, result, (2, shape[1].dim_value, height, width), np.float32)
    for check in (done.runtime_check, done.self_check):
        assert check is not None
        assert check.ok
    assert done.notes == ()


# ----------------------------------------------------------------------------- what must stay

STAYS: dict[str, tuple[Callable[[], Any], str]] = {}


def stays(reason: str) -> Any:
    def enter(function: Callable[[], Any]) -> Callable[[], Any]:
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


@pytest.mark.parametrize("name", STAYS)
def test_what_must_not_be_merged_stays_as_it_is(name: str, tmp_path: Path) -> None:
    build, reason = STAYS[name]
    model = build()
    done, result = fused(tmp_path, model)
    assert any(reason in each.reason for each in done.left), done.left
    assert result.SerializeToString() == model.SerializeToString()
    assert done.convs_before == done.convs_after
    assert done.merged == ()
    assert (done.self_check, done.runtime_check) == (None, None)


@pytest.mark.parametrize("name", [*MERGED, *STAYS])
def test_inspection_says_what_conversion_does(name: str, tmp_path: Path) -> None:
    built = MERGED[name]() if name in MERGED else STAYS[name][0]()
    model = built[0] if isinstance(built, tuple) else built
    if name == "a_norm_that_is_not_finite":  # which only the fusion sees
        return
    seen = inspect_graph(saved(tmp_path / "in.onnx", model))
    done, _ = fused(tmp_path, model)
    for what in ("opset", "convs_before", "convs_after", "merged", "left"):
        assert getattr(seen, what) == getattr(done, what), what
