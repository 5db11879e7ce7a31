"""One change each to quantised ONNX files: a constant, an attribute, an operator more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from repvgg_ref.oracle.integers import onnx_run
from tests.peers.onnx_edits import add_constant, changed

LAYER, LINEAR = "stage1.1", "linear"
Edit = Callable[[Any], None]
EXACT = ("session.x64quantprecision", "1")


@pytest.fixture
def exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of `verify` on a machine without VNNI do not saturate sums of two products."""
    monkeypatch.setitem(onnx_run._CONFIG, *EXACT)


def constant(name: str, change: Callable[[Any], Any]) -> Edit:
    """Another array under the same name, in the same type."""

    def edit(proto: Any) -> None:
        changed(proto, name, lambda array: np.asarray(change(array)).astype(array.dtype))

    return edit


def attribute(maker: str, name: str, value: Any) -> Edit:
    """Another setting of the node called `maker`."""

    def edit(proto: Any) -> None:
        node = next(each for each in proto.graph.node if each.name == maker)
        for old in [each for each in node.attribute if each.name == name]:
            node.attribute.remove(old)
        node.attribute.append(helper.make_attribute(name, value))

    return edit


def behind(
    *operators: tuple[str, Any], domain: str = "", output: str = "logits", **settings: Any
) -> Edit:
    """Operators, each with a constant or None beside its input, in front of the output."""

    def edit(proto: Any) -> None:
        node = next(each for each in proto.graph.node if output in each.output)
        node.output[0] = x = f"{output}.before"
        for i, (operator, beside) in enumerate(operators):
            inputs = [x]
            if beside is not None:
                add_constant(proto, f"beside{i}", beside)
                inputs.append(f"beside{i}")
            x = output if i == len(operators) - 1 else f"behind{i}"
            made = helper.make_node(
                operator,
                inputs,
                [x],
                f"added{i}",
                domain=domain,
                **(settings if x == output else {}),
            )
            proto.graph.node.append(made)
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        proto.graph.output[0].type.tensor_type.ClearField("shape")

    return edit


def between(tensor: str, operator: str, beside: Any = None, **settings: Any) -> Edit:
    """An operator behind `tensor`, in front of all that read it."""

    def edit(proto: Any) -> None:
        made = f"{tensor}.changed"
        at = 0
        for i, node in enumerate(proto.graph.node):
            node.input[:] = [made if each == tensor else each for each in node.input]
            at = i + 1 if tensor in node.output else at
        inputs = [tensor]
        if beside is not None:
            add_constant(proto, "between", beside)
            inputs.append("between")
        proto.graph.node.insert(
            at, helper.make_node(operator, inputs, [made], "between", **settings)
        )

    return edit


def nothing(proto: Any) -> None:
    """The file as it is."""


def average_pool(side: int) -> Edit:
    def edit(proto: Any) -> None:
        node = next(each for each in proto.graph.node if each.op_type == "GlobalAveragePool")
        node.op_type = "AveragePool"
        node.attribute.append(helper.make_attribute("kernel_shape", [side, side]))

    return edit


def reduce_mean(axes: list[int]) -> Edit:
    def edit(proto: Any) -> None:
        node = next(each for each in proto.graph.node if each.op_type == "GlobalAveragePool")
        node.op_type = "ReduceMean"
        node.attribute.append(helper.make_attribute("axes", axes))

    return edit


def product_and_sum(proto: Any) -> None:
    """The linear layer as exporters of MatMul and Add write it; its bias is real."""
    node = next(each for each in proto.graph.node if each.op_type == "Gemm")
    arrays = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    bias, scale = (arrays[f"{LINEAR}.{part}"] for part in ("bias", "bias_scale"))
    changed(proto, f"{LINEAR}.weight", lambda array: array.T)
    kernel = next(each for each in proto.graph.node if node.input[1] in each.output)
    for old in list(kernel.attribute):
        kernel.attribute.remove(old)
    kernel.attribute.append(helper.make_attribute("axis", 1))
    add_constant(proto, "real_bias", (bias * scale).astype(np.float32))
    at = list(proto.graph.node).index(node)
    both = [
        helper.make_node("MatMul", list(node.input[:2]), ["product"], "product"),
        helper.make_node("Add", ["product", "real_bias"], list(node.output), "sum"),
    ]
    proto.graph.node.remove(node)
    for i, each in enumerate(both):
        proto.graph.node.insert(at + i, each)


def _one_more(array: Any, place: int, by: float) -> Any:
    array.reshape(-1)[place] += by
    return array


def _next_one(array: Any) -> Any:
    array[1] = array[2]
    return array


def _rolled(array: Any) -> Any:
    return np.roll(array, 1)


# What does not change the logits, and should be seen not to.
SAME = frozenset(
    {"nothing", "mul 1", "add 0", "neg twice", "clip far", "identity", "flatten"}
    | {"reshape to itself", "classes as they are", "whole average", "mean over the image"}
    | {"a product and a sum", "beta of no bias"}
)
COMMON: dict[str, Edit] = {
    "nothing": nothing,
    "mul 3": behind(("Mul", np.array([3], np.float32))),
    "mul 1": behind(("Mul", np.array([1], np.float32))),
    "add 5": behind(("Add", np.array([5], np.float32))),
    "add 0": behind(("Add", np.array([0], np.float32))),
    "sub of a class": behind(("Sub", np.array([0, 1, 0], np.float32))),
    "neg": behind(("Neg", None)),
    "neg twice": behind(("Neg", None), ("Neg", None)),
    "div 2": behind(("Div", np.float32(2))),
    "abs": behind(("Abs", None)),
    "sigmoid": behind(("Sigmoid", None)),
    "relu": behind(("Relu", None)),
    "clip near": behind(("Clip", np.float32(0.1))),
    "clip far": behind(("Clip", np.float32(-1e9))),
    "identity": behind(("Identity", None)),
    "flatten": behind(("Flatten", None)),
    "reshape to itself": behind(("Reshape", np.array([0, -1], np.int64))),
    "reshape to one row": behind(("Reshape", np.array([1, -1], np.int64))),
    "transpose": behind(("Transpose", None)),
    "classes reversed": behind(("Gather", np.array([2, 1, 0], np.int64)), axis=1),
    "classes as they are": behind(("Gather", np.array([0, 1, 2], np.int64)), axis=1),
    "softmax over images": behind(("Softmax", None), axis=0),
    "mul behind softmax": behind(("Softmax", None), ("Mul", np.float32(2))),
    "softmax of twice": behind(("Mul", np.float32(2)), ("Softmax", None)),
    "a weight": constant(
        f"{LAYER}.weight", lambda a: _one_more(a, 3, 40 if a.flat[3] < 0 else -40)
    ),
    "bias negated": constant(f"{LAYER}.bias", np.negative),
    "bias dropped": constant(f"{LINEAR}.bias", np.zeros_like),
    "weight scales rolled": constant(f"{LAYER}.weight_scale", _rolled),
    "the next one's scale": constant(f"{LAYER}.weight_scale", _next_one),
    "weight scale NaN": constant(f"{LAYER}.weight_scale", lambda a: a * np.nan),
    "weight scale negative": constant(f"{LAYER}.weight_scale", np.negative),
    "weight scale inf": constant(f"{LAYER}.weight_scale", lambda a: a * np.inf),
    "scale of numbers doubled": constant(f"{LAYER}.scale", lambda a: a * 2),
    "output scale NaN": constant(f"{LINEAR}.scale", lambda a: a * np.nan),
    "output scale 0": constant(f"{LINEAR}.scale", np.zeros_like),
    "weight zero point 3": constant(f"{LAYER}.weight_zero_point", lambda a: a + 3),
    "weight zero points differ": constant(
        f"{LAYER}.weight_zero_point", lambda a: _one_more(a, 0, 3)
    ),
    "stride": attribute(f"{LAYER}.y", "strides", [2, 2]),
    "pads": attribute(f"{LAYER}.y", "pads", [0, 0, 2, 2]),
    "dilations": attribute(f"{LAYER}.y", "dilations", [2, 2]),
    "same, upper": attribute(f"{LAYER}.y", "auto_pad", "SAME_UPPER"),
}
PAIRS: dict[str, Edit] = {
    "alpha": attribute(f"{LINEAR}.y", "alpha", 2.0),
    "beta": attribute(f"{LINEAR}.y", "beta", 0.5),
    "beta 0": attribute(f"{LINEAR}.y", "beta", 0.0),
    "bias scale rolled": constant(f"{LAYER}.bias_scale", _rolled),
    "bias scale x10": constant(f"{LAYER}.bias_scale", lambda a: a * 10),
    "bias scale NaN": constant(f"{LAYER}.bias_scale", lambda a: a * np.nan),
    "linear's bias scale x10": constant(f"{LINEAR}.bias_scale", lambda a: a * 10),
    "weight axis 1": attribute(f"{LAYER}.weight.real", "axis", 1),
    "bias axis gone": attribute(f"{LAYER}.bias.real", "axis", 1),
    "whole average": average_pool(2),
    "average of a part": average_pool(1),
    "mean over the image": reduce_mean([2, 3]),
    "mean over rows": reduce_mean([2]),
    "a product and a sum": product_and_sum,
    "mul between": between(f"{LAYER}.y", "Mul", np.float32(2)),
    "neg between": between(f"{LAYER}.x", "Neg"),
    "relu gone": between(f"{LAYER}.relu", "Identity"),
    "clip between": between(f"{LAYER}.relu", "Clip", np.float32(0.2)),
    "pixels moved": between(f"{LAYER}.x", "Transpose", perm=[0, 1, 3, 2]),
    "flat as rows": between("pool.numbers", "Transpose", perm=[1, 0, 2, 3]),
}
INTEGERS: dict[str, Edit] = {
    "transB": attribute(LINEAR, "transB", 0),
    "alpha": attribute(LINEAR, "alpha", 2.0),
    "channels last": attribute("pool.mean", "channels_last", 1),
    "flatten 0": attribute("pool", "axis", 0),
    "biases off": constant(f"{LAYER}.bias", lambda a: a + 900),
}


def edits_of(style: str) -> dict[str, Edit]:
    """All that make sense for files of this style."""
    if style == "qdq":
        return COMMON | PAIRS
    named = {"stride", "pads", "dilations", "same, upper"}
    own = {
        "stride": attribute(LAYER, "strides", [2, 2]),
        "pads": attribute(LAYER, "pads", [0, 0, 2, 2]),
        "dilations": attribute(LAYER, "dilations", [2, 2]),
        "same, upper": attribute(LAYER, "auto_pad", "SAME_UPPER"),
    }
    return {k: v for k, v in COMMON.items() if k not in named} | own | INTEGERS
