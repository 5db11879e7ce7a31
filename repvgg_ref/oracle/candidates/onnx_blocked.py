"""ONNX Runtime's own layout, NCHWc: channels in blocks of 8 or 16, each block innermost.

A graph saved after all optimisations holds it. Tensors are read through the runtime's own
``ReorderOutput``; kernels are put in order here. Source: onnxruntime, core/mlas/lib/reorder.cpp
(``MlasReorderFilterOIHWBiBo``, ``MlasReorderFilterOIHWBo``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.packages import require

DOMAIN = "com.microsoft.nchwc"


def blocked_tensors(nodes: Iterable[Any]) -> frozenset[str]:
    """The tensors in NCHWc, of `nodes` in topological order: whatever a blocked one goes into."""
    found: set[str] = set()
    for node in nodes:
        starts = node.domain == DOMAIN
        if node.op_type != "ReorderOutput" and (starts or not found.isdisjoint(node.input)):
            found.update(output for output in node.output if output)
    return frozenset(found)


def in_order(tensor: str, name: str, channels: int) -> Any:
    """The node, the runtime's own, that makes `name` of a blocked tensor: the same in NCHW."""
    return require("onnx").helper.make_node(
        "ReorderOutput", [tensor], [name], domain=DOMAIN, channels=channels, channels_last=0
    )


def unblocked_kernel(weight: Array) -> Array:
    """A stored kernel as (O, I, Kh, Kw), O filled up with zeros to whole blocks.

    Stored are (O/B, I/B, Kh, Kw, B of I, B of O), or where I is no whole number of blocks
    (O/B, I, Kh, Kw, B of O); the shape in the file says (O, I, Kh, Kw) all the same.
    """
    outputs, inputs, *taps = weight.shape
    size = block_size()
    if outputs % size:
        raise ValueError(f"{outputs} channels are no blocks of {size}")
    if inputs % size:
        parts = weight.reshape(outputs // size, inputs, *taps, size)
        # (O/B, I, Kh, Kw, B) -> (O/B, B, I, Kh, Kw)
        return np.ascontiguousarray(parts.transpose(0, 4, 1, 2, 3)).reshape(weight.shape)
    parts = weight.reshape(outputs // size, inputs // size, *taps, size, size)
    # (O/B, I/B, Kh, Kw, Bi, Bo) -> (O/B, Bo, I/B, Bi, Kh, Kw)
    return np.ascontiguousarray(parts.transpose(0, 5, 1, 4, 2, 3)).reshape(weight.shape)


@cache
def block_size() -> int:
    """Channels in a block on this machine; the runtime is asked, since it is no attribute."""
    helper, runtime = require("onnx").helper, require("onnxruntime")
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)
    kinds = [helper.make_tensor_value_info("x", 1, [1, 4, 1, 1])]
    ends = [helper.make_tensor_value_info("y", 1, None)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph([node], "blocks", kinds, ends), opset_imports=opsets, ir_version=8
    )
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.zeros((1, 4, 1, 1), np.float32)})
    return int(found.shape[1])
