"""bfloat16 and float64 models on a runtime that has no such kernels: float32 in their place.

For bfloat16 every tensor is kept in float32 and rounded to bfloat16 behind each operator, which is
what a runtime with float32 accumulation and bfloat16 storage computes. float64 models are computed
in float32, and said to be.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.files.onnx_graph.functions import subgraphs
from repvgg_ref.files.onnx_graph.packages import first_line, require
from repvgg_ref.oracle.candidates.base import CandidateFailure

# They choose among values or move them: rounded inputs give rounded outputs.
_EXACT = frozenset(
    {"Relu", "MaxPool", "GlobalMaxPool", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze"}
    | {"Unsqueeze", "Pad", "Slice", "Concat", "Split", "Gather", "Expand", "Dropout"}
)
_LARGE = 1024  # elements; larger initializers are no shapes


def widened(model: Any, name: str) -> tuple[Any, str] | None:
    """A float32 model in place of one in bfloat16 or float64, and a note; None if it is neither.

    Raises
    ------
    CandidateFailure
        If the graph has branches or loops, which are not rewritten.
    """
    onnx = require("onnx")
    types = _types(model, onnx)
    narrow = onnx.TensorProto.BFLOAT16 in types.values()
    kind = onnx.TensorProto.BFLOAT16 if narrow else onnx.TensorProto.DOUBLE
    if kind not in types.values():
        return None
    if any(True for node in model.graph.node for _ in subgraphs(node)):
        raise CandidateFailure(f"{name}: control flow in a type that the runtime lacks")
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type == kind:
            graph.initializer[i].CopyFrom(_float32(tensor, onnx))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == kind:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del graph.value_info[:]
    nodes = [_retyped(node, kind, onnx) for node in graph.node]
    if narrow:
        nodes = [n for node in nodes for n in _rounded(node, types, onnx)]
    del graph.node[:]
    graph.node.extend(nodes)
    return wide, _NOTES[narrow]


_NOTES = {
    True: "bfloat16 emulated: float32 arithmetic, rounded to bfloat16 behind every operator",
    False: "a float64 model computed in float32: the runtime has no float64 convolution",
}


def _types(model: Any, onnx: Any) -> dict[str, int]:
    """Element type of every tensor whose type is known."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if int(np.prod(tensor.dims)) > _LARGE:
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)
    try:
        inferred = require("onnx.shape_inference").infer_shapes(light)
    except Exception as error:
        raise CandidateFailure(
            "the model's types cannot be inferred", got=first_line(error)
        ) from None
    graph = inferred.graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _float32(tensor: Any, onnx: Any) -> Any:
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    return onnx.numpy_helper.from_array(values, tensor.name)


def _retyped(node: Any, kind: int, onnx: Any) -> Any:
    """The node with float32 in its attributes: constants and the targets of casts."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    for attribute in changed.attribute:
        if attribute.HasField("t") and attribute.t.data_type == kind:
            attribute.t.CopyFrom(_float32(attribute.t, onnx))
        if attribute.name in ("to", "dtype") and attribute.i == kind:
            attribute.i = onnx.TensorProto.FLOAT
    return changed


def _rounded(node: Any, types: dict[str, int], onnx: Any) -> list[Any]:
    """The node, and casts to bfloat16 and back behind each output that was bfloat16."""
    if node.op_type in _EXACT:
        return [node]
    following = []
    for i, output in enumerate(node.output):
        if types.get(output) == onnx.TensorProto.BFLOAT16:
            wide, narrow = f"{output}/wide", f"{output}/bfloat16"
            node.output[i] = wide
            following += [
                onnx.helper.make_node("Cast", [wide], [narrow], to=onnx.TensorProto.BFLOAT16),
                onnx.helper.make_node("Cast", [narrow], [output], to=onnx.TensorProto.FLOAT),
            ]
    return [node, *following]
