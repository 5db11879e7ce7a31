"""RepVGG as ONNX graphs, changed inside of their blocks or given another output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from repvgg_ref.arrays import Array
from tests.oracle.candidates.ports import network
from tests.peers.candidate_graphs import Style, onnx_model
from tests.peers.onnx_ends import FUSED, ending


def stored(proto: Any, name: str) -> Any:
    return next(t for t in proto.graph.initializer if t.name == name)


def changed(proto: Any, name: str, change: Callable[[Array], Array]) -> None:
    tensor = stored(proto, name)
    array = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def convolutions(proto: Any) -> list[Any]:
    return [node for node in proto.graph.node if node.op_type == "Conv"]


def setting(node: Any, name: str) -> Any:
    return next(a for a in node.attribute if a.name == name).ints


def add_constant(proto: Any, name: str, values: Any) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def strides_apart(operator: str, form: str = "fused") -> Any:
    """Stride 1, and every second pixel of the activation."""
    proto = onnx_model(network(), Style(form=form))
    for name, values in (("from", [0, 0]), ("to", [2**31 - 1] * 2), ("on", [2, 3]), ("by", [2, 2])):
        add_constant(proto, name, np.array(values, np.int64))
    nodes, thin = [], False
    renamed: dict[str, str] = {}
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        if node.op_type == "Conv" and list(setting(node, "strides")) == [2, 2]:
            setting(node, "strides")[:] = [1, 1]
            thin = True
        if node.op_type == "Relu" and thin:
            (full,), thin = node.output, False
            renamed[full] = f"{full}/thin"
            if operator == "Slice":
                made = helper.make_node("Slice", [full, "from", "to", "on", "by"], [renamed[full]])
            else:
                window = {"kernel_shape": [1, 1], "strides": [2, 2]}
                made = helper.make_node(operator, [full], [renamed[full]], **window)
            nodes.append(made)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def weights_through(operator: str, store: Callable[[Array], Array], **attributes: Any) -> Any:
    """Kernels kept otherwise, and brought into shape by the graph."""
    proto = onnx_model(network(), FUSED)
    for node in convolutions(proto):
        name = node.input[1]
        changed(proto, name, store)
        node.input[1] = f"{name}/used"
        made = helper.make_node(operator, [name], [node.input[1]], **attributes)
        proto.graph.node.insert(0, made)
    return proto


def relu_as(operator: str, *ends: float, only: int | None = None) -> Any:
    proto = onnx_model(network(), FUSED)
    names = [f"end {i}" for i in range(len(ends))]
    for name, end in zip(names, ends, strict=True):
        add_constant(proto, name, np.float32(end))
    relus = [node for node in proto.graph.node if node.op_type == "Relu"]
    for node in relus if only is None else [relus[only]]:
        node.op_type = operator
        node.input.extend(names)
    return proto


def pads(proto: Any, sides: list[int], stride: int = 2) -> Any:
    """Other borders where the stride is `stride`."""
    for node in convolutions(proto):
        if list(setting(node, "strides")) == [stride] * 2:
            setting(node, "pads")[:] = sides
    return proto


def same_lower() -> Any:
    proto = onnx_model(network(), FUSED)
    for node in convolutions(proto):
        node.attribute.remove(next(a for a in node.attribute if a.name == "pads"))
        node.attribute.append(helper.make_attribute("auto_pad", "SAME_LOWER"))
    return proto


def bias_apart() -> Any:
    """Every convolution's bias as an addition."""
    proto = onnx_model(network(), FUSED)
    for node in convolutions(proto):
        bias, (output,) = node.input[2], node.output
        changed(proto, bias, lambda a: a.reshape(-1, 1, 1))
        del node.input[2]
        node.output[0] = f"{output}/product"
        place = list(proto.graph.node).index(node) + 1
        proto.graph.node.insert(place, helper.make_node("Add", [node.output[0], bias], [output]))
    return proto


def one_tap_off(block: int, *, form: str = "fused", se: Any = "none", groups: int = 1) -> Any:
    """One tap of the block's 3x3 convolution is wrong by a thousandth, a small one."""
    proto = onnx_model(network(se, groups), Style(form=form))
    dense = [n for n in convolutions(proto) if stored(proto, n.input[1]).dims[2] == 3]

    def edited(weight: Array) -> Array:
        taps = weight[3, 1].reshape(-1)
        smallest = next(i for i in np.argsort(np.abs(taps)) if i != 4)
        taps[smallest] *= np.float32(1.001)
        return weight

    changed(proto, dense[block].input[1], edited)
    return proto


def classifier_off(proto: Any) -> Any:
    """One weight of the classifier is wrong by a thousandth."""
    last = next(n for n in list(proto.graph.node)[::-1] if n.op_type in ("Gemm", "Conv"))

    def edited(weight: Array) -> Array:
        weight[2, 5] *= np.float32(1.001)
        return weight

    changed(proto, last.input[1], edited)
    return proto


def times_two_of_halves() -> Any:
    proto = ending("Mul", np.float32(2))
    gemm = next(n for n in proto.graph.node if n.op_type == "Gemm")
    for name in gemm.input[1:]:
        changed(proto, name, lambda a: a / 2)
    return proto


def second_output(change: Callable[[Any, str], str], *, first: bool = False) -> Any:
    """The right network with another output beside its logits."""
    proto = onnx_model(network(), FUSED)
    name = change(proto, proto.graph.output[0].name)
    ends = [*proto.graph.output, helper.make_tensor_value_info(name, 1, None)]
    del proto.graph.output[:]
    proto.graph.output.extend(ends[::-1] if first else ends)
    return proto


def appended(operator: str, **attributes: Any) -> Callable[[Any, str], str]:
    def change(proto: Any, logits: str) -> str:
        proto.graph.node.append(helper.make_node(operator, [logits], ["second"], **attributes))
        return "second"

    return change


def auxiliary(proto: Any, logits: str) -> str:
    """A classifier behind the third block."""
    x = [node for node in proto.graph.node if node.op_type == "Relu"][2].output[0]
    add_constant(proto, "aux weight", np.ones((7, 32), np.float32))
    proto.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", [x], ["aux pool"]),
            helper.make_node("Flatten", ["aux pool"], ["aux flat"]),
            helper.make_node("Gemm", ["aux flat", "aux weight"], ["second"], transB=1),
        ]
    )
    return "second"
