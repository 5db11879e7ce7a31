"""RepVGG as ONNX graphs, right ones in unusual ways and wrong ones that look like them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from tests.oracle.candidates.ports import HEIGHT, WIDTH, network
from tests.peers.candidate_graphs import Graph, Style, onnx_model

FUSED = Style(form="fused")
FIXED = replace(FUSED, input_shape=(2, 3, HEIGHT, WIDTH))
MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
LAST = (3, 2)  # what the strides leave of HEIGHT and WIDTH

Change = Callable[[Graph, str], str]


@dataclass(frozen=True)
class Wrong:
    """A wrong graph, the layer where it is, and one of the names it must get."""

    make: Callable[[], Any]
    layer: str
    bugs: tuple[str, ...]


def ending(operator: str, *constants: Any, form: str = "fused", **attributes: Any) -> Any:
    """The fused network with one more operator behind the logits."""

    def tail(graph: Graph, x: str) -> str:
        inputs = [graph.constant(c, getattr(c, "dtype", None)) for c in constants]
        return graph.add(operator, x, *inputs, **attributes)

    return onnx_model(network(), Style(form=form, tail=tail))


def behind(change: Change) -> Any:
    return onnx_model(network(), replace(FUSED, tail=change))


def entered(change: Change, *, kind: int = 1, nhwc: bool = False, form: str = "fused") -> Any:
    """The network with something in front of it."""
    shape = ("n", "h", "w", 3) if nhwc else ("n", 3, "h", "w")
    proto = onnx_model(network(), Style(form=form, entrance=change, input_shape=shape))
    proto.graph.input[0].type.tensor_type.elem_type = kind
    return proto


def headed(write: Callable[[Graph, Model, str], str], style: Style = FUSED) -> Any:
    return onnx_model(network(), replace(style, write_head=write))


def classified(graph: Graph, model: Model, features: str) -> str:
    weight, bias = (graph.constant(model.params[f"linear.{p}"]) for p in ("weight", "bias"))
    return graph.add("Gemm", features, weight, bias, transB=1)


def multiplied(graph: Graph, model: Model, features: str) -> str:
    product = graph.add("MatMul", features, graph.constant(model.params["linear.weight"].T))
    return graph.add("Add", product, graph.constant(model.params["linear.bias"]))


def class_map(graph: Graph, model: Model, x: str) -> str:
    """The classifier as a 1x1 convolution."""
    kernel = graph.constant(model.params["linear.weight"][:, :, None, None])
    return graph.add("Conv", x, kernel, graph.constant(model.params["linear.bias"]))


def flat_pool(graph: Graph, x: str, operator: str = "GlobalAveragePool") -> str:
    return graph.add("Flatten", graph.add(operator, x))


# ------------------------------------------------------------------------------- what comes first


def _normalised(graph: Graph, x: str, scale: float = 1.0) -> str:
    centred = graph.add("Sub", x, graph.constant(MEAN * scale))
    return graph.add("Div", centred, graph.constant(STD * scale))


def _affine(graph: Graph, x: str) -> str:
    scaled = graph.add("Mul", x, graph.constant(1 / STD))
    return graph.add("Add", scaled, graph.constant(-MEAN / STD))


def _batch_norm(graph: Graph, x: str) -> str:
    vectors = (np.ones(3), np.zeros(3), MEAN.ravel(), STD.ravel() ** 2)
    return graph.add("BatchNormalization", x, *map(graph.constant, vectors), epsilon=1e-9)


def _depthwise(graph: Graph, x: str) -> str:
    kernel, bias = (1 / STD).reshape(3, 1, 1, 1), (-MEAN / STD).ravel()
    return graph.add("Conv", x, graph.constant(kernel), graph.constant(bias), group=3)


def _bytes_nhwc(graph: Graph, x: str) -> str:
    values = graph.add("Cast", x, to=1)
    centred = graph.add("Sub", values, graph.constant(MEAN.ravel() * 255))
    scaled = graph.add("Div", centred, graph.constant(STD.ravel() * 255))
    return graph.add("Transpose", scaled, perm=[0, 3, 1, 2])


def _bgr(graph: Graph, x: str) -> str:
    return graph.add("Gather", x, graph.constant([2, 1, 0], np.int64), axis=1)


# ---------------------------------------------------------------------------------- how it ends


def _pool_by(operator: str, **attributes: Any) -> Callable[[Graph, Model, str], str]:
    def write(graph: Graph, model: Model, x: str) -> str:
        return classified(graph, model, graph.add(operator, x, **attributes))

    return write


def _depthwise_pool(graph: Graph, model: Model, x: str) -> str:
    channels, (height, width) = model.arch.features, LAST
    kernel = np.full((channels, 1, height, width), 1 / (height * width))
    pooled = graph.add("Conv", x, graph.constant(kernel), group=channels)
    return classified(graph, model, graph.add("Flatten", pooled))


def _window_pool(graph: Graph, model: Model, x: str) -> str:
    pooled = graph.add("AveragePool", x, kernel_shape=list(LAST))
    return classified(graph, model, graph.add("Flatten", pooled))


def _mean_of_rows(graph: Graph, model: Model, x: str) -> str:
    rows = graph.add("Reshape", x, graph.constant([0, 0, -1], np.int64))
    return classified(graph, model, graph.add("ReduceMean", rows, axes=[-1], keepdims=0))


def _squeezed(graph: Graph, model: Model, x: str) -> str:
    axes = graph.constant([2, 3], np.int64)
    return multiplied(graph, model, graph.add("Squeeze", graph.add("GlobalAveragePool", x), axes))


def _last_channels(graph: Graph, model: Model, x: str) -> str:
    pooled = graph.add("ReduceMean", graph.add("Transpose", x, perm=[0, 2, 3, 1]), axes=[1, 2])
    return multiplied(graph, model, graph.add("Flatten", pooled))


def _products_first(graph: Graph, model: Model, x: str) -> str:
    maps = multiplied(graph, model, graph.add("Transpose", x, perm=[0, 2, 3, 1]))
    return graph.add("ReduceMean", maps, axes=[1, 2], keepdims=0)


def _turned_in_the_graph(graph: Graph, model: Model, x: str) -> str:
    turned = graph.add("Transpose", graph.constant(model.params["linear.weight"]), perm=[1, 0])
    product = graph.add("MatMul", flat_pool(graph, x), turned)
    return graph.add("Sub", product, graph.constant(-model.params["linear.bias"]))


def _dropout(graph: Graph, model: Model, x: str, *, on: bool) -> str:
    given = [graph.constant(0.5), graph.constant(on, np.bool_)]
    return classified(graph, model, graph.add("Dropout", flat_pool(graph, x), *given))


def _generalised_mean(graph: Graph, model: Model, x: str) -> str:
    cubes = graph.add("Pow", graph.add("Clip", x, graph.constant(1e-6)), graph.constant(3.0))
    mean = graph.add("Pow", flat_pool(graph, cubes), graph.constant(1 / 3))
    return classified(graph, model, mean)


def _softmax_by_hand(graph: Graph, x: str) -> str:
    powers = graph.add("Exp", graph.add("Sub", x, graph.add("ReduceMax", x, axes=[1])))
    total = graph.add("ReduceSum", powers, graph.constant([1], np.int64))
    return graph.add("Div", powers, total)


def _times_two_of_halves() -> Any:
    proto = ending("Mul", np.float32(2))
    gemm = next(n for n in proto.graph.node if n.op_type == "Gemm")
    for name in gemm.input[1:]:
        changed(proto, name, lambda a: a / 2)
    return proto


# --------------------------------------------------------------------------- inside of the blocks


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
    nodes, renamed, thin = [], {}, False
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


# -------------------------------------------------------------------------------- several outputs


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


RIGHT: dict[str, Callable[[], Any]] = {
    "normalised": lambda: entered(_normalised),
    "normalised by mul and add": lambda: entered(_affine),
    "normalised by one number": lambda: entered(lambda g, x: g.add("Sub", x, g.constant(0.5))),
    "normalised, three branches": lambda: entered(_normalised, form="bn"),
    "inverted": lambda: entered(lambda g, x: g.add("Sub", g.constant(1.0), x)),
    "batch norm first": lambda: entered(_batch_norm),
    "depthwise convolution first": lambda: entered(_depthwise),
    "bytes": lambda: entered(lambda g, x: g.add("Cast", x, to=1), kind=2),
    "bytes, normalised": lambda: entered(
        lambda g, x: _normalised(g, g.add("Cast", x, to=1), 255), kind=2
    ),
    "bytes, channels last": lambda: entered(_bytes_nhwc, kind=2, nhwc=True),
    "softmax": lambda: ending("Softmax", axis=1),
    "log-softmax": lambda: ending("LogSoftmax", axis=-1),
    "softmax by hand": lambda: behind(_softmax_by_hand),
    "times one": lambda: ending("Mul", np.float32(1)),
    "all classes gathered": lambda: ending("Gather", np.arange(7), axis=1),
    "clipped to all of float32": lambda: ending(
        "Clip", np.finfo(np.float32).min, np.finfo(np.float32).max
    ),
    "dropout switched off": lambda: headed(lambda g, m, x: _dropout(g, m, x, on=False)),
    "half the weights, twice the product": _times_two_of_halves,
    "classifier before the pool": lambda: headed(lambda g, m, x: flat_pool(g, class_map(g, m, x))),
    "products before the pool": lambda: headed(_products_first),
    "pool as a depthwise convolution": lambda: headed(_depthwise_pool, FIXED),
    "pool as a window": lambda: headed(_window_pool, FIXED),
    "pool of one row": lambda: headed(_mean_of_rows),
    "pool over the middle axes": lambda: headed(_last_channels),
    "pool without its axes": lambda: headed(_pool_by("ReduceMean", axes=[2, 3], keepdims=0)),
    "squeeze and matmul": lambda: headed(_squeezed),
    "weight turned in the graph": lambda: headed(_turned_in_the_graph),
    "stride as a pool": lambda: strides_apart("MaxPool"),
    "stride as a pool, three branches": lambda: strides_apart("MaxPool", "bn"),
    "stride as a slice": lambda: strides_apart("Slice"),
    "weights cast": lambda: weights_through("Cast", lambda a: a.astype(np.float64), to=1),
    "weights transposed": lambda: weights_through(
        "Transpose", lambda a: a.transpose(2, 3, 1, 0), perm=[3, 2, 0, 1]
    ),
    "relu as a clip": lambda: relu_as("Clip", 0.0),
    "relu as a maximum": lambda: relu_as("Max", 0.0),
    "same lower": same_lower,
    "one side padded, of even images": lambda: pads(
        onnx_model(network(), replace(FUSED, input_shape=(2, 3, 64, 64))), [1, 1, 0, 0]
    ),
    "bias apart": bias_apart,
    "an auxiliary head first": lambda: second_output(auxiliary, first=True),
    "probabilities second": lambda: second_output(appended("Softmax", axis=1)),
    "the negative second": lambda: second_output(appended("Neg")),
}

_ALTERED = ("head-output",)

WRONG: dict[str, Wrong] = (
    {
        name: Wrong(make, "linear", _ALTERED)
        for name, make in {
            "negative": lambda: ending("Neg"),
            "classes moved": lambda: ending("Gather", np.roll(np.arange(7), 1), axis=1),
            "relu": lambda: ending("Relu"),
            "clip": lambda: ending("Clip", np.float32(-1), np.float32(1)),
            "clip far off": lambda: ending("Clip", np.float32(-1000), np.float32(1000)),
            "softmax over the batch": lambda: ending("Softmax", axis=0),
            "round": lambda: ending("Round"),
            "five classes": lambda: ending("Slice", np.array([0]), np.array([5]), np.array([1])),
            "times": lambda: ending("Mul", np.float32(1.01)),
            "plus": lambda: ending("Add", np.full(7, 0.5, np.float32)),
            "sigmoid": lambda: ending("Sigmoid"),
            "absolute": lambda: ending("Abs"),
            "softmax of the negative": lambda: behind(
                lambda g, x: g.add("Softmax", g.add("Neg", x), axis=1)
            ),
            "softmax rounded": lambda: behind(
                lambda g, x: g.add("Round", g.add("Softmax", x, axis=1))
            ),
            "cast to integers": lambda: behind(
                lambda g, x: g.add("Cast", g.add("Cast", x, to=6), to=1)
            ),
            "the negative first": lambda: second_output(appended("Neg"), first=True),
        }.items()
    }
    | {
        "dropout": Wrong(
            lambda: headed(lambda g, m, x: _dropout(g, m, x, on=True)),
            "linear",
            ("dropout-left-on",),
        ),
        "pool by the maximum": Wrong(
            lambda: headed(lambda g, m, x: classified(g, m, flat_pool(g, x, "GlobalMaxPool"))),
            "linear",
            ("head-pool",),
        ),
        "generalised mean": Wrong(lambda: headed(_generalised_mean), "linear", ("head-pool",)),
        "one side padded": Wrong(
            lambda: pads(onnx_model(network(), FUSED), [1, 1, 0, 0]),
            "stage0",
            ("padding-asymmetric",),
        ),
        "clip of an activation": Wrong(
            lambda: relu_as("Clip", 0.0, 600.0, only=3), "stage2.0", ("other-activation",)
        ),
        "bgr inside": Wrong(lambda: entered(_bgr), "stage0", ("input-bgr",)),
        "bgr inside, normalised": Wrong(
            lambda: entered(lambda g, x: _normalised(g, _bgr(g, x))), "stage0", ("input-bgr",)
        ),
        "classifier's tap": Wrong(
            lambda: classifier_off(onnx_model(network(), FUSED)), "linear", ("taps-altered",)
        ),
        "class map's tap": Wrong(
            lambda: classifier_off(headed(lambda g, m, x: flat_pool(g, class_map(g, m, x)))),
            "linear",
            ("taps-altered",),
        ),
    }
    | {
        f"tap, {form}": Wrong(lambda f=form: one_tap_off(3, form=f), "stage2.0", ("taps-altered",))  # type: ignore[misc]
        for form in ("fused", "folded", "bn")
    }
)
