"""A quantised ONNX file as an integer network: operators on integers, or quantise-dequantise pairs.

The graph is followed from its image to its outputs. A real tensor is either numbers taken apart by
DequantizeLinear, or a layer still open, which the next QuantizeLinear closes. What is not
understood, an operator or one of its settings, is refused by name and never passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.errors import ReportedError
from repvgg_ref.integer.layers import Quantization
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.onnx_load import load_onnx
from repvgg_ref.oracle.integers.onnx_arrays import StatedBias
from repvgg_ref.oracle.integers.onnx_ending import Ending, find_ending, last_tensors
from repvgg_ref.oracle.integers.onnx_operators import read_node
from repvgg_ref.oracle.integers.onnx_schema import unlike_schema
from repvgg_ref.oracle.integers.onnx_shapes import Shape
from repvgg_ref.oracle.integers.onnx_walk import Open, Walk
from weights_io import sanitize

ROUNDING = "float-even"
UNROUNDED = "its output is not quantised"


@dataclass(frozen=True)
class ReadNetwork:
    """The network in a file, and what else the file says.

    Attributes
    ----------
    network : IntegerNetwork
    tensors : mapping
        Where its numbers are: layer (or "input") -> tensor.
    model : onnx.ModelProto
    ending : Ending
        What follows the last numbers.
    stated : mapping
        Layer -> its bias, where the file holds it in other units.
    doubts : mapping
        Layer -> why the numbers of a right runtime may be others than those of `network`.
    shape : tuple
        The input's shape as the file states it; None where it is free.
    clipped : frozenset of str
        Layers whose tensor holds what their ReLU, of real numbers, is still to clip.
    """

    network: IntegerNetwork
    tensors: Mapping[str, str]
    model: Any = field(repr=False)
    ending: Ending = field(default_factory=Ending)
    stated: Mapping[str, StatedBias] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int | None, ...] = (None,) * 4
    clipped: frozenset[str] = frozenset()


def read_integer_onnx(path: Path) -> ReadNetwork:
    """Read the quantised chain in `path`; see `files.integer_onnx` for what is written.

    Raises
    ------
    CandidateFailure
        If it is no chain of quantised convolutions, pooling and a linear layer; the operator that
        does not belong is named.
    """
    model = load_onnx(path)
    name = sanitize(path.name)
    try:
        return _read(model, name)
    except CandidateFailure:
        raise
    except ReportedError as error:
        raise CandidateFailure(f"{name}: {error}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise CandidateFailure(
            f"{name}: the graph is malformed", got=sanitize(type(error).__name__)
        ) from None


def _read(model: Any, name: str) -> ReadNetwork:
    """Follow the nodes that an output depends on, in the order in which the file has them."""
    graph = model.graph
    known = {each.name for each in graph.initializer}
    image = next(each for each in graph.input if each.name not in known)
    walk = Walk(model, name, image)
    if unlike := unlike_schema(model):
        raise walk.failure("no ONNX that a runtime would take", got=unlike)
    outputs = [str(each.name) for each in graph.output]
    nodes = _needed(graph, outputs)
    for node in nodes:
        if any(each in walk.numbers or each in walk.real for each in node.input):
            read_node(walk, node)
    last = _closed(walk) or last_tensors(walk)
    if not walk.layers:
        raise walk.failure("no quantised layer was found")
    ending = find_ending(walk, last, nodes, outputs)
    name = walk.layers[-1].name
    if ending.bias is not None:
        walk.stated[name] = ending.bias
        walk.doubts[name] = "its bias is added behind its last rounding"
        _put_bias(walk, ending.bias)
    walk.tensors["input"] = walk.entered
    dims = image.type.tensor_type.shape.dim
    shape = tuple((int(d.dim_value) or None) if d.HasField("dim_value") else None for d in dims)
    return ReadNetwork(
        IntegerNetwork(tuple(walk.layers), ROUNDING),
        walk.tensors,
        model,
        ending,
        walk.stated,
        walk.doubts,
        shape if len(shape) == 4 else (None,) * 4,
        frozenset(walk.clipped),
    )


def _needed(graph: Any, outputs: list[str]) -> list[Any]:
    """The nodes that an output depends on."""
    wanted, found = set(outputs), []
    for node in reversed(graph.node):
        if any(each in wanted for each in node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _closed(walk: Walk) -> dict[str, Shape]:
    """Close a last layer whose output stays real: its scale says nothing, and is not judged."""
    count = len(walk.layers)
    left = {
        name: each
        for name, each in walk.real.items()
        if isinstance(each, Open) and each.layers == count
    }
    if not left:
        return {}
    tensor, layer = list(left.items())[-1]
    widest = 1.0 if layer.weight_scale is None else float(np.max(layer.weight_scale))
    scale = np.asarray(np.float32(float(layer.input.scale) * widest))
    walk.close(layer, Quantization(scale, np.zeros((), np.int8)), tensor)
    del walk.numbers[tensor]
    walk.doubts[walk.layers[-1].name] = UNROUNDED
    return {tensor: layer.shape}


def _put_bias(walk: Walk, bias: StatedBias) -> None:
    """Give the last layer the bias that is added behind its numbers."""
    last = walk.layers[-1]
    assert last.weight_scale is not None
    unit = float(last.input.scale) * last.weight_scale.astype(np.float64)
    walk.layers[-1] = replace(last, bias=bias.in_units(unit))
