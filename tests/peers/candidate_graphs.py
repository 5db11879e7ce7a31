"""RepVGG as ONNX graphs, written by hand in the many ways in which exporters write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model

FORMS = ("bn", "folded", "fused")


@dataclass
class Graph:
    """Nodes and initializers under construction; tensors are named t0, t1, ... or by a seed."""

    dtype: Any = np.float32
    seed: int | None = None
    split_groups: bool = False
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = 4000
        order = np.arange(count) if self.seed is None else _shuffled(count, self.seed)
        self._names = iter(f"t{i}" for i in order)

    def constant(self, array: Any, dtype: Any = None) -> str:
        """A new initializer."""
        name = next(self._names)
        values = np.asarray(array, dtype or self.dtype)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A new node; returns its output's name."""
        output = next(self._names)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output


@dataclass(frozen=True)
class Style:
    """How a graph is written.

    `between` is applied to every block's output, `tail` to the logits; `write_head` is called with
    the last block's output instead of `pool` and `head`.
    """

    form: str = "bn"
    opset: int = 13
    seed: int | None = None
    dtype: Any = np.float32
    between: Callable[[Graph, str], str] = lambda graph, x: x
    entrance: Callable[[Graph, str], str] = lambda graph, x: x
    pool: str = "GlobalAveragePool"
    head: str = "Gemm"
    write_head: Callable[[Graph, Model, str], str] | None = None
    tail: Callable[[Graph, str], str] = lambda graph, x: x
    input_shape: Sequence[Any] = ("n", 3, "h", "w")
    extra_outputs: bool = False
    skip: tuple[str, ...] = ()
    split_groups: bool = False


def onnx_model(model: Model, style: Style = Style()) -> Any:
    """`model` (train form) as a ModelProto."""
    graph = Graph(style.dtype, style.seed, style.split_groups)
    x = style.entrance(graph, "pixels")
    outputs = []
    for spec in model.arch.blocks:
        if spec.name not in style.skip:
            x = block(graph, model, spec, x, style.form)
            outputs.append(x)
            x = style.between(graph, x)
    logits = style.tail(graph, _head(graph, model, x, style))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(style.dtype))
    ends = [logits, *(outputs if style.extra_outputs else [])]
    proto = helper.make_graph(
        graph.nodes,
        "by hand",
        [helper.make_tensor_value_info("pixels", kind, list(style.input_shape))],
        [helper.make_tensor_value_info(name, kind, None) for name in ends],
        graph.constants,
    )
    imports = [helper.make_opsetid("", style.opset)]
    return helper.make_model(proto, opset_imports=imports, ir_version=8)


def block(graph: Graph, model: Model, spec: BlockSpec, x: str, form: str) -> str:
    """One block: convolutions, activation and squeeze-and-excitation in its order."""
    if form == "fused":
        fused = fuse_block(spec, model.params, eps=model.eps, dtype=np.float64)
        y = _conv(graph, spec, x, fused.weight, fused.bias)
    else:
        write = _branch_with_bn if form == "bn" else _branch_folded
        branches = branches_of(spec, model.params, model.eps)
        parts = [
            write(graph, spec, x, branch, model.eps, copies=name == "branch_identity")
            for name, branch in branches.items()
        ]
        y = parts[0]
        for part in parts[1:]:
            y = graph.add("Add", y, part)
    if spec.se == "before_relu":
        return graph.add("Relu", _squeeze(graph, model, spec, y))
    y = graph.add("Relu", y)
    return _squeeze(graph, model, spec, y) if spec.se == "after_relu" else y


def _branch_with_bn(
    graph: Graph, spec: BlockSpec, x: str, branch: Branch, eps: float, *, copies: bool
) -> str:
    y = x if copies else _conv(graph, spec, x, branch.weight, None)
    statistics = [branch.gamma, branch.beta, branch.running_mean, branch.running_var]
    return graph.add("BatchNormalization", y, *map(graph.constant, statistics), epsilon=eps)


def _branch_folded(
    graph: Graph, spec: BlockSpec, x: str, branch: Branch, eps: float, *, copies: bool
) -> str:
    t, bias = branch.scale(eps), branch.bias(eps)
    if not copies:
        return _conv(graph, spec, x, branch.kernel(eps), bias)
    scaled = graph.add("Mul", x, graph.constant(t[:, None, None]))
    return graph.add("Add", scaled, graph.constant(bias[:, None, None]))


def _conv(graph: Graph, spec: BlockSpec, x: str, weight: Array, bias: Array | None) -> str:
    if graph.split_groups and spec.groups > 1:
        return _one_conv_a_group(graph, spec, x, weight, bias)
    constants = [graph.constant(weight)] + ([] if bias is None else [graph.constant(bias)])
    padding = weight.shape[2] // 2
    geometry = {"strides": [spec.stride] * 2, "pads": [padding] * 4, "group": spec.groups}
    if padding:  # a kernel's shape may be left to the weight's
        geometry["kernel_shape"] = [3, 3]
    return graph.add("Conv", x, *constants, **geometry)


def _one_conv_a_group(
    graph: Graph, spec: BlockSpec, x: str, weight: Array, bias: Array | None
) -> str:
    """Split, convolve, concatenate: what old TensorFlow exporters make of groups."""
    parts = [graph.add("Identity", x) for _ in range(spec.groups)]
    graph.nodes[-spec.groups :] = [helper.make_node("Split", [x], parts, axis=1)]
    plain = replace(spec, groups=1)
    weights = np.split(weight, spec.groups)
    biases = [None] * spec.groups if bias is None else np.split(bias, spec.groups)
    outputs = [
        _conv(graph, plain, part, w, b) for part, w, b in zip(parts, weights, biases, strict=True)
    ]
    return graph.add("Concat", *outputs, axis=1)


def _squeeze(graph: Graph, model: Model, spec: BlockSpec, x: str) -> str:
    params = [
        graph.constant(model.params[f"{spec.name}.se.{part}"])
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    ]
    pooled = graph.add("GlobalAveragePool", x)
    hidden = graph.add("Relu", graph.add("Conv", pooled, *params[:2]))
    return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Conv", hidden, *params[2:])))


def _head(graph: Graph, model: Model, x: str, style: Style) -> str:
    if style.write_head is not None:
        return style.write_head(graph, model, x)
    weight, bias = model.params["linear.weight"], model.params["linear.bias"]
    if style.pool == "GlobalAveragePool":
        pooled = graph.add("GlobalAveragePool", x)
    elif style.opset < 18:
        pooled = graph.add("ReduceMean", x, axes=[2, 3], keepdims=1)
    else:
        pooled = graph.add("ReduceMean", x, graph.constant([-1, -2], np.int64), keepdims=1)
    if style.head == "Conv":
        kernel = graph.constant(weight[:, :, None, None])
        return graph.add("Conv", pooled, kernel, graph.constant(bias))
    flat = _flat(graph, pooled, style)
    if style.head == "MatMul":
        return graph.add(
            "Add", graph.add("MatMul", flat, graph.constant(weight.T)), graph.constant(bias)
        )
    return graph.add("Gemm", flat, graph.constant(weight), graph.constant(bias), transB=1)


def _flat(graph: Graph, pooled: str, style: Style) -> str:
    """Flatten, or the reshape by a computed shape that old exporters write."""
    if style.head != "MatMul":
        return graph.add("Flatten", pooled)
    shape = graph.add("Shape", "pixels")  # a path around everything, but of no values
    batch = graph.add("Gather", shape, graph.constant([0], np.int64))
    target = graph.add("Concat", batch, graph.constant([-1], np.int64), axis=0)
    return graph.add("Reshape", pooled, target)


def cast_to_half(graph: Graph, x: str) -> str:
    """A detour through float16, as mixed precision writes it."""
    half = graph.add("Cast", x, to=TensorProto.FLOAT16)
    return graph.add("Cast", half, to=TensorProto.FLOAT)


def there_and_back(graph: Graph, x: str) -> str:
    """NHWC and NCHW again, with an identity between."""
    last = graph.add("Identity", graph.add("Transpose", x, perm=[0, 2, 3, 1]))
    return graph.add("Transpose", last, perm=[0, 3, 1, 2])


def to_nchw(graph: Graph, x: str) -> str:
    """What tf2onnx puts behind an NHWC input."""
    return graph.add("Transpose", x, perm=[0, 3, 1, 2])


def softmax(graph: Graph, x: str) -> str:
    return graph.add("Softmax", x, axis=-1)


def saved(path: Any, proto: Any) -> Any:
    onnx.save(proto, path)
    return path


def _shuffled(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).permutation(count)
