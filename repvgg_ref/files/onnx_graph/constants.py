"""The constants of an ONNX graph: initializers, constant nodes, and what is computed from them.

A weight is often not stored as the convolution sees it: it comes through a cast, a transposition,
a dequantisation. `Constants.value` computes such things with ONNX's own reference operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.packages import require

# Operators that are computed beforehand; `_size` knows those that make much out of little.
_FOLDED = frozenset(
    {"Identity", "Cast", "CastLike", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
    | {"DequantizeLinear", "QuantizeLinear", "Concat", "Slice", "Gather", "Split", "Pad", "Shape"}
    | {"ConstantOfShape"}  # of the padding that torch writes
    | {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Reciprocal", "Pow", "Exp", "MatMul"}
)
_PASSING = frozenset({"Cast", "Identity", "Transpose", "DequantizeLinear", "QuantizeLinear"})
_MOST_ELEMENTS = 1 << 27
_MOST_IN_ALL = 1 << 29
_DEEPEST = 32


def attribute(node: Any, name: str) -> Any | None:
    """The attribute called `name`, if the node has it."""
    return next((a for a in node.attribute if a.name == name), None)


def setting(node: Any, name: str, default: Any = None) -> Any:
    """The value of an attribute: a number, a text, a list of numbers, or `default`."""
    found = attribute(node, name)
    if found is None:
        return default
    value = require("onnx").helper.get_attribute_value(found)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Constants:
    """Initializers and constant nodes of a graph, and who makes which tensor.

    `opset` is the version of ONNX's own operators; a domain is not looked at.
    """

    def __init__(self, graph: Any, opset: int = 17) -> None:
        self.opset = opset
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self._values: dict[str, Array | None] = {}
        self._left = _MOST_IN_ALL

    def tensor(self, name: str) -> Any | None:
        """The TensorProto behind `name`, if it is one."""
        if name in self.initializers:
            return self.initializers[name]
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            return next((a.t for a in node.attribute if a.name == "value"), None)
        return None

    def origin(self, name: str) -> tuple[Any | None, list[Any]]:
        """The tensor that `name` is made of by operators of one input, and those operators."""
        passed: list[Any] = []
        while (found := self.tensor(name)) is None and len(passed) < _DEEPEST:
            node = self.producers.get(name)
            if node is None or node.op_type not in _PASSING or not node.input:
                return None, passed
            passed.append(node)
            name = node.input[0]
        return found, passed

    def stored_as(self, name: str) -> str:
        """NumPy's name of the element type in which the file holds `name`; "" if it is computed."""
        tensor, _ = self.origin(name)
        if tensor is None:
            return ""
        onnx = require("onnx")
        if tensor.data_type == onnx.TensorProto.BFLOAT16:  # of which NumPy knows nothing
            return "bfloat16"
        return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))

    def value(self, name: str, depth: int = 0) -> Array | None:
        """The array called `name`, if it depends on no input of the graph and can be computed."""
        if name not in self._values:
            self._values[name] = self._computed(name, depth)
        return self._values[name]

    def define(self, name: str, array: Array) -> None:
        """Say what a tensor holds that is known in another way."""
        self._values[name] = array

    def _computed(self, name: str, depth: int) -> Array | None:
        tensor = self.tensor(name)
        if tensor is not None:
            array = np.asarray(require("onnx.numpy_helper").to_array(tensor))
            return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        node = self.producers.get(name)
        if node is None or depth > _DEEPEST:
            return None
        if node.op_type == "Constant":
            return _written_out(node)
        if node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx"):
            return None
        inputs = {each: self.value(each, depth + 1) for each in node.input if each}
        known = {each: array for each, array in inputs.items() if array is not None}
        if len(known) < len(inputs):
            return None
        size = _size(node, list(known.values()))
        if size > min(_MOST_ELEMENTS, self._left):
            return None
        self._left -= size
        outputs = self._evaluated(node, known)
        return None if outputs is None else outputs[list(node.output).index(name)]

    def _evaluated(self, node: Any, inputs: Mapping[str, Array]) -> list[Array] | None:
        evaluator = require("onnx.reference").ReferenceEvaluator
        try:
            found = evaluator(node, opsets={"": self.opset}).run(None, dict(inputs))
        except Exception:  # what the reference cannot compute is not known
            return None
        return [np.asarray(array) for array in found]


def _size(node: Any, inputs: list[Array]) -> int:
    """At least as many elements as the node makes or reads: a small file must not fill memory."""
    whole = sum(array.size for array in inputs)
    if node.op_type == "MatMul" and len(inputs) == 2 and inputs[1].ndim > 1:
        return max(whole, int(inputs[0].size * inputs[1].shape[-1]))
    if node.op_type == "Gather" and len(inputs) == 2:
        return max(whole, inputs[0].size * inputs[1].size)
    if node.op_type == "ConstantOfShape":
        return prod(abs(int(n)) for array in inputs for n in array.reshape(-1))
    if node.op_type == "Pad":
        pads = setting(node, "pads") or (inputs[1].tolist() if len(inputs) > 1 else [])
        return max(whole, inputs[0].size * prod(1 + abs(int(n)) for n in pads))
    try:
        return max(whole, prod(np.broadcast_shapes(*(array.shape for array in inputs))))
    except ValueError:
        return whole


def _written_out(node: Any) -> Array | None:
    """A constant node's numbers, where they are no tensor."""
    for name in ("value_float", "value_floats"):
        if (value := setting(node, name)) is not None:
            return np.asarray(value, np.float32)
    for name in ("value_int", "value_ints"):
        if (value := setting(node, name)) is not None:
            return np.asarray(value, np.int64)
    return None
