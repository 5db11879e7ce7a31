"""ONNX graphs for other runtimes, made here and not by the product: three branches or one kernel.

Every layer's output is a graph output under the layer's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model, fuse

_KIND = {"float32": 1, "float16": 10, "bfloat16": 16}  # TensorProto.DataType


@dataclass
class _Graph:
    params: dict[str, Array]
    eps: float
    kind: str
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def weight(self, name: str) -> str:
        from onnx import helper, numpy_helper

        array = np.ascontiguousarray(self.params[name], np.float32)
        if self.kind == "bfloat16":
            made = helper.make_tensor(name, 16, array.shape, array.ravel().tolist())
        else:
            made = numpy_helper.from_array(array.astype(self.kind), name)
        self.weights.append(made)
        return name

    def conv(self, spec: BlockSpec, x: str, weight: str, bias: str | None, y: str) -> str:
        kernel = self.params[weight].shape[2]
        point = kernel == 1
        return self.add(
            "Conv",
            [x, self.weight(weight), *([self.weight(bias)] if bias else [])],
            y,
            kernel_shape=[kernel] * 2,
            strides=[spec.stride] * 2,
            pads=[0 if point else spec.dilation] * 4,
            dilations=[1 if point else spec.dilation] * 2,
            group=spec.groups,
        )

    def branches(self, spec: BlockSpec, x: str) -> str:
        """Convolution and batch norm of every branch, and their sum."""
        total = ""
        for branch in ("branch_3x3", "branch_1x1", "branch_identity"):
            prefix = f"{spec.name}.{branch}"
            if f"{prefix}.bn.gamma" not in self.params:
                continue
            weight = f"{prefix}.conv.weight"
            z = self.conv(spec, x, weight, None, f"{prefix}.z") if weight in self.params else x
            fields = ("gamma", "beta", "running_mean", "running_var")
            bn = [self.weight(f"{prefix}.bn.{field}") for field in fields]
            y = self.add("BatchNormalization", [z, *bn], f"{prefix}.y", epsilon=self.eps)
            total = self.add("Add", [total, y], f"{prefix}.sum") if total else y
        return total

    def squeeze(self, spec: BlockSpec, x: str, y: str) -> str:
        se = f"{spec.name}.se"
        point = BlockSpec("", 1, 1, 1)
        pooled = self.add("GlobalAveragePool", [x], f"{se}.pool")
        down = self.conv(point, pooled, f"{se}.down.weight", f"{se}.down.bias", f"{se}.narrow")
        relu = self.add("Relu", [down], f"{se}.relu")
        up = self.conv(point, relu, f"{se}.up.weight", f"{se}.up.bias", f"{se}.wide")
        gate = self.add("Sigmoid", [up], f"{se}.gate")
        return self.add("Mul", [x, gate], y)


def onnx_graph(
    model: Model, *, fused: bool, kind: str = "float32", shape: tuple[Any, ...] | None = None
) -> Any:
    """The whole network as a `ModelProto`; `shape` (N, C, H, W) may hold names for free extents."""
    from onnx import helper

    source = fuse(model) if fused else model
    graph = _Graph(dict(source.params), model.eps, kind)
    element = _KIND[kind]
    outputs, x = [], "input"
    for spec in model.arch.blocks:
        x = _block(graph, spec, x, fused=fused)
        outputs.append(helper.make_tensor_value_info(x, element, None))
    pooled = graph.add("GlobalAveragePool", [x], "pool")
    flat = graph.add("Flatten", [pooled], "features", axis=1)
    head = [flat, graph.weight("linear.weight"), graph.weight("linear.bias")]
    graph.add("Gemm", head, "linear", transB=1)
    outputs.append(helper.make_tensor_value_info("linear", element, None))
    shape = shape or ("N", model.arch.in_channels, "H", "W")
    entrance = [helper.make_tensor_value_info("input", element, list(shape))]
    made = helper.make_graph(graph.nodes, "repvgg", entrance, outputs, graph.weights)
    opset = [helper.make_opsetid("", 22 if kind == "bfloat16" else 17)]
    return helper.make_model(made, opset_imports=opset, ir_version=10)


def _block(graph: _Graph, spec: BlockSpec, x: str, *, fused: bool) -> str:
    name = spec.name
    if fused:
        total = graph.conv(spec, x, f"{name}.fused.weight", f"{name}.fused.bias", f"{name}.conv")
    else:
        total = graph.branches(spec, x)
    if spec.se == "before_relu":
        total = graph.squeeze(spec, total, f"{name}.scaled")
    if spec.se == "after_relu":
        return graph.squeeze(spec, graph.add("Relu", [total], f"{name}.relu"), name)
    return graph.add("Relu", [total], name)
