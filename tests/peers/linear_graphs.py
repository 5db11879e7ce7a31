"""Small ONNX graphs with linear parts, put together node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from repvgg_ref.arrays import Array

X, Y = "x", "y"


class Graph:
    """Builds a graph: every method adds a node and returns the name of its output."""

    def __init__(self, dtype: Any = np.float32, seed: int = 0) -> None:
        self.dtype, self.rng = np.dtype(dtype), np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}

    def constant(self, array: Any, *, node: bool = False) -> str:
        """An initializer, or a constant node."""
        name = f"c{len(self.tensors) + len(self.nodes)}"
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.tensors[name] = tensor
        return name

    def drawn(self, *shape: int, node: bool = False) -> str:
        """Normal numbers."""
        return self.constant(self.rng.normal(size=shape).astype(self.dtype), node=node)

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Any node; the names of its outputs if there are several."""
        at = len(self.nodes)
        names = [f"{operator}{at}" + (f".{k}" if outputs > 1 else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, f"n{at}", **attributes))
        return names if outputs > 1 else names[0]

    def conv(
        self,
        x: str,
        i: int,
        o: int,
        k: Any = 3,
        *,
        bias: bool = False,
        weight: str = "",
        **how: Any,
    ) -> str:
        """A convolution, "same" unless `how` says otherwise."""
        rows, columns = (k, k) if isinstance(k, int) else k
        group = how.get("group", 1)
        d = how.get("dilations", [1, 1])
        same = [d[0] * (rows // 2), d[1] * (columns // 2)]
        how = {"pads": [*same, *same]} | how
        if "auto_pad" in how:
            del how["pads"]
        names = [weight or self.drawn(o, i // group, rows, columns)]
        return str(self.node("Conv", x, *names, *([self.drawn(o)] if bias else []), **how))

    def bn(self, x: str, c: int, **how: Any) -> str:
        """A batch norm."""
        var = self.constant((self.rng.random(c) + 0.5).astype(self.dtype))
        vectors = [self.drawn(c), self.drawn(c), self.drawn(c), var]
        return str(self.node("BatchNormalization", x, *vectors, **({"epsilon": 1e-3} | how)))

    def conv_bn(self, x: str, i: int, o: int, k: Any = 3, **how: Any) -> str:
        """Both."""
        return self.bn(self.conv(x, i, o, k, **how), o)

    def add(self, *terms: str) -> str:
        """A sum, two by two."""
        whole, *others = terms
        for term in others:
            whole = str(self.node("Add", whole, term))
        return whole

    def relu(self, x: str) -> str:
        """What is not linear."""
        return str(self.node("Relu", x))

    def model(
        self,
        channels: int,
        *outputs: str,
        size: tuple[int, int] | None = None,
        opset: int = 17,
        ir: int = 8,
    ) -> Any:
        """The model that ends in these tensors; images of any size unless one is said."""
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        rows, columns = size or ("h", "w")
        shape = ["n", channels, rows, columns]
        info = helper.make_tensor_value_info
        inputs = [info(X, element, shape)]
        if ir < 4:
            inputs += [info(t.name, t.data_type, list(t.dims)) for t in self.tensors.values()]
        graph = helper.make_graph(
            self.nodes,
            "graph",
            inputs,
            [info(name, element, [f"{name}.{axis}" for axis in range(4)]) for name in outputs],
            list(self.tensors.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def saved(path: Path, model: Any) -> Path:
    """The model in a file that the checker likes."""
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(model: Any, x: Array) -> list[Array]:
    """All outputs, as the nodes say, with no optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {X: x})]


def operators(model: Any) -> list[str]:
    """What the nodes are."""
    return [node.op_type for node in model.graph.node]
