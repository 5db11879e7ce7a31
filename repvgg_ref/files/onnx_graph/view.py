"""An ONNX graph, indexed: who makes and who reads each tensor, what is constant, types and shapes.

What a branch or a loop body reads of the graph around it counts as read by its node. An initializer
that the caller may override is no constant, and a quantised weight is none either: folding it would
undo the quantisation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import Constants
from repvgg_ref.files.onnx_graph.functions import subgraphs
from repvgg_ref.files.onnx_graph.packages import require

Shape = tuple[int | None, ...]
FLOATS = ("float16", "float32", "float64")
_NEVER_FOLDED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_SMALL = 1024  # elements: sizes and axes are no more
_OVERRIDABLE_SINCE = 4  # IR version: before it every initializer had to be an input


class View:
    """See the module.

    Attributes
    ----------
    nodes : list of NodeProto
        In the file's order, which is topological.
    makers : dict of tensor -> index of the node that makes it
    readers : dict of tensor -> indices of the nodes that read it
    outputs : frozenset of tensors
        What leaves the graph.

    Parameters
    ----------
    model : ModelProto
    nodes : list of NodeProto, optional
        In place of the model's own.
    """

    def __init__(self, model: Any, nodes: list[Any] | None = None) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node) if nodes is None else nodes
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(read_by(node)):
                self.readers[name].append(i)
        self.initializers = frozenset(each.name for each in model.graph.initializer)
        self.outputs = frozenset(each.name for each in model.graph.output)
        self.opset = opset_of(model)
        self._constants = Constants(model.graph, self.opset)
        self._own = {(f.domain, f.name) for f in model.functions}
        given = {each.name for each in model.graph.input}
        self._overridable = given if model.ir_version >= _OVERRIDABLE_SINCE else frozenset()
        self._fixed: dict[str, bool] = {}
        self._know_extents()

    def operator(self, node: Any) -> str:
        """What ONNX's own operator the node is; "" for others and for functions of the file."""
        is_own = (node.domain, node.op_type) in self._own
        return "" if is_own or node.domain not in ("", "ai.onnx") else str(node.op_type)

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with a number behind it: a name that nothing in the graph has, nor in it."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}.{count}"
        self._taken.add(name)
        return name

    def label(self, index: int) -> str:
        """How people call a node."""
        return label(self.nodes[index])

    def constant(self, name: str) -> Array | None:
        """The array called `name`, if no caller and no quantiser has a hand in it."""
        return self._constants.value(name) if name and self._is_fixed(name) else None

    def stored_as(self, name: str) -> str:
        """NumPy's name of the element type in which the file holds a constant."""
        return self._constants.stored_as(name)

    def shape(self, name: str) -> Shape | None:
        """What inference found; None if it found nothing."""
        return self._inferred[1].get(name)

    def dtype(self, name: str) -> str:
        """NumPy's name of the element type; "" if it is not known."""
        return self._inferred[0].get(name, "")

    def channels(self, name: str) -> int | None:
        """The second extent of images; None if it is not known, or they are no images."""
        shape = self.shape(name)
        return shape[1] if shape is not None and len(shape) == 4 else None

    def size(self, name: str) -> tuple[int, int] | None:
        """Height and width of images, where the file fixes them."""
        shape = self.shape(name)
        if shape is None or len(shape) != 4 or shape[2] is None or shape[3] is None:
            return None
        return shape[2], shape[3]

    @cached_property
    def _taken(self) -> set[str]:
        """A branch or a body sees the names around it: what is new must be none of theirs."""
        return set(names_in(self.graph, self.nodes))

    def _know_extents(self) -> None:
        """Extents that graphs compute and the file fixes: exporters halve channels so."""
        for node in self.nodes:
            shape = self.shape(node.input[0]) if self.operator(node) == "Shape" else None
            if shape is None or node.attribute or not any(shape):
                continue
            if None not in shape:
                self._know(node.output[0], np.array(shape, np.int64))
            for i in self.readers[node.output[0]]:
                reader = self.nodes[i]
                index = self.constant(reader.input[1]) if len(reader.input) == 2 else None
                if self.operator(reader) != "Gather" or index is None or index.size != 1:
                    continue
                if not -len(shape) <= (at := int(index.reshape(()))) < len(shape):
                    continue
                if (extent := shape[at]) is not None:
                    self._know(reader.output[0], np.full(index.shape, extent, np.int64))

    def _know(self, name: str, array: Array) -> None:
        self._constants.define(name, array)
        self._fixed[name] = True

    def _is_fixed(self, name: str) -> bool:
        known, waiting = self._fixed, [name]
        while waiting:
            at = waiting[-1]
            if at in known:
                waiting.pop()
                continue
            index = self.makers.get(at)
            if index is None:
                known[at] = at in self.initializers and at not in self._overridable
                continue
            node = self.nodes[index]
            before = [each for each in node.input if each]
            missing = [each for each in before if each not in known]
            if missing:
                waiting += missing
            else:
                known[at] = node.op_type not in _NEVER_FOLDED and all(known[n] for n in before)
        return known[name]

    @cached_property
    def _inferred(self) -> tuple[dict[str, str], dict[str, Shape]]:
        try:
            graph = require("onnx.shape_inference").infer_shapes(_skeleton(self.model)).graph
        except Exception:  # what inference cannot do
            graph = self.graph
        types: dict[str, str] = {}
        shapes: dict[str, Shape] = {}
        for each in (*graph.input, *graph.value_info, *graph.output):
            kind = each.type.tensor_type
            types[each.name] = _type_name(kind.elem_type)
            if kind.HasField("shape"):
                shapes[each.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
                )
        return types, shapes


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators; 0 if the model uses none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _skeleton(model: Any) -> Any:
    """The model with inputs in place of large initializers: inference copies what it gets."""
    onnx = require("onnx")
    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    small.functions.extend(model.functions)
    graph, whole = small.graph, model.graph
    graph.name = whole.name
    graph.node.extend(whole.node)
    graph.input.extend(whole.input)
    graph.output.extend(whole.output)
    graph.value_info.extend(whole.value_info)
    given = {each.name for each in whole.input}
    for tensor in whole.initializer:
        if prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    return small


def label(node: Any) -> str:
    """How people call a node: by its name, or what it makes."""
    return str(node.name or next((name for name in node.output if name), node.op_type))


def names_in(graph: Any, nodes: Iterable[Any]) -> Iterator[str]:
    """Every name in a graph of these `nodes`, and in the graphs inside them."""
    for each in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        yield each.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in nodes:
        yield from (node.name, *node.input, *node.output)
        for inner in subgraphs(node):
            yield from names_in(inner, inner.node)


def _type_name(number: int) -> str:
    onnx = require("onnx")
    if number == onnx.TensorProto.BFLOAT16:  # of which NumPy knows nothing
        return "bfloat16"
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)))
    except (KeyError, TypeError):
        return ""


def read_by(node: Any) -> Iterator[str]:
    """The tensors that a node reads; of a graph inside it, all names, its own among them."""
    yield from (name for name in node.input if name)
    for inner in subgraphs(node):
        yield from (each.name for each in inner.output)
        for each in inner.node:
            yield from read_by(each)
