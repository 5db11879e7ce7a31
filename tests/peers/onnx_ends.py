"""RepVGG as ONNX graphs with something in front of them, in their head or behind their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.models.network import Model
from tests.oracle.candidates.ports import HEIGHT, WIDTH, network
from tests.peers.candidate_graphs import Graph, Style, onnx_model

FUSED = Style(form="fused")
FIXED = replace(FUSED, input_shape=(2, 3, HEIGHT, WIDTH))
MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
LAST = (3, 2)  # what the strides leave of HEIGHT and WIDTH

Change = Callable[[Graph, str], str]


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


def normalised(graph: Graph, x: str, scale: float = 1.0) -> str:
    centred = graph.add("Sub", x, graph.constant(MEAN * scale))
    return graph.add("Div", centred, graph.constant(STD * scale))


def affine(graph: Graph, x: str) -> str:
    scaled = graph.add("Mul", x, graph.constant(1 / STD))
    return graph.add("Add", scaled, graph.constant(-MEAN / STD))


def batch_norm(graph: Graph, x: str) -> str:
    vectors = (np.ones(3), np.zeros(3), MEAN.ravel(), STD.ravel() ** 2)
    return graph.add("BatchNormalization", x, *map(graph.constant, vectors), epsilon=1e-9)


def depthwise(graph: Graph, x: str) -> str:
    kernel, bias = (1 / STD).reshape(3, 1, 1, 1), (-MEAN / STD).ravel()
    return graph.add("Conv", x, graph.constant(kernel), graph.constant(bias), group=3)


def bytes_nhwc(graph: Graph, x: str) -> str:
    values = graph.add("Cast", x, to=1)
    centred = graph.add("Sub", values, graph.constant(MEAN.ravel() * 255))
    scaled = graph.add("Div", centred, graph.constant(STD.ravel() * 255))
    return graph.add("Transpose", scaled, perm=[0, 3, 1, 2])


def bgr(graph: Graph, x: str) -> str:
    return graph.add("Gather", x, graph.constant([2, 1, 0], np.int64), axis=1)


# ---------------------------------------------------------------------------------- how it ends


def pool_by(operator: str, **attributes: Any) -> Callable[[Graph, Model, str], str]:
    def write(graph: Graph, model: Model, x: str) -> str:
        return classified(graph, model, graph.add(operator, x, **attributes))

    return write


def depthwise_pool(graph: Graph, model: Model, x: str) -> str:
    channels, (height, width) = model.arch.features, LAST
    kernel = np.full((channels, 1, height, width), 1 / (height * width))
    pooled = graph.add("Conv", x, graph.constant(kernel), group=channels)
    return classified(graph, model, graph.add("Flatten", pooled))


def window_pool(graph: Graph, model: Model, x: str) -> str:
    pooled = graph.add("AveragePool", x, kernel_shape=list(LAST))
    return classified(graph, model, graph.add("Flatten", pooled))


def mean_of_rows(graph: Graph, model: Model, x: str) -> str:
    rows = graph.add("Reshape", x, graph.constant([0, 0, -1], np.int64))
    return classified(graph, model, graph.add("ReduceMean", rows, axes=[-1], keepdims=0))


def squeezed(graph: Graph, model: Model, x: str) -> str:
    axes = graph.constant([2, 3], np.int64)
    return multiplied(graph, model, graph.add("Squeeze", graph.add("GlobalAveragePool", x), axes))


def last_channels(graph: Graph, model: Model, x: str) -> str:
    pooled = graph.add("ReduceMean", graph.add("Transpose", x, perm=[0, 2, 3, 1]), axes=[1, 2])
    return multiplied(graph, model, graph.add("Flatten", pooled))


def products_first(graph: Graph, model: Model, x: str) -> str:
    maps = multiplied(graph, model, graph.add("Transpose", x, perm=[0, 2, 3, 1]))
    return graph.add("ReduceMean", maps, axes=[1, 2], keepdims=0)


def turned_in_the_graph(graph: Graph, model: Model, x: str) -> str:
    turned = graph.add("Transpose", graph.constant(model.params["linear.weight"]), perm=[1, 0])
    product = graph.add("MatMul", flat_pool(graph, x), turned)
    return graph.add("Sub", product, graph.constant(-model.params["linear.bias"]))


def dropout(graph: Graph, model: Model, x: str, *, on: bool) -> str:
    given = [graph.constant(0.5), graph.constant(on, np.bool_)]
    return classified(graph, model, graph.add("Dropout", flat_pool(graph, x), *given))


def generalised_mean(graph: Graph, model: Model, x: str) -> str:
    cubes = graph.add("Pow", graph.add("Clip", x, graph.constant(1e-6)), graph.constant(3.0))
    mean = graph.add("Pow", flat_pool(graph, cubes), graph.constant(1 / 3))
    return classified(graph, model, mean)


def softmax_by_hand(graph: Graph, x: str) -> str:
    powers = graph.add("Exp", graph.add("Sub", x, graph.add("ReduceMax", x, axes=[1])))
    total = graph.add("ReduceSum", powers, graph.constant([1], np.int64))
    return graph.add("Div", powers, total)
