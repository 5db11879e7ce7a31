"""Linear parts fused exactly, and the graph that has one convolution for each of them.

Whatever is in no part stays as the file has it: nodes, their order, names, initializers, types.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv, fuse_linear
from repvgg_ref.blocks.selfcheck import BlockCheck, check_linear
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.files.onnx_graph.packages import require
from repvgg_ref.files.onnx_graph.part import Part
from repvgg_ref.files.onnx_graph.plan import Left, Plan
from repvgg_ref.files.onnx_graph.reading import UNFORESEEN, unforeseen
from repvgg_ref.files.onnx_graph.view import View, read_by

_INITIALIZERS_ARE_INPUTS_BEFORE = 4  # IR version
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    """A part's convolution: `fused` on the algebra's lattice, `weight` as ONNX gets it."""

    part: Part
    fused: FusedConv
    weight: Array
    check: BlockCheck


def fused_parts(
    plan: Plan,
    view: View,
    arrays: Mapping[str, Array],
    progress: Progress | None = None,
) -> tuple[list[Made], list[Left]]:
    """Every part fused and checked; those that cannot be are left, with the reason.

    Raises
    ------
    SelfCheckError
        If a convolution differs from its part by more than rounding.
    """
    made, left = [], []
    for done, part in enumerate(plan.parts, start=1):
        try:
            made.append(_made(part, view, arrays))
        except NotFusibleError as error:
            left.append(Left(view.label(part.node), str(error)))
            continue
        except UNFORESEEN as error:
            left.append(Left(view.label(part.node), unforeseen(error)))
            continue
        made[-1].check.raise_if_bad()
        if progress is not None:
            progress(part.output, done, len(plan.parts))
    while (at := _read_by_what_stays(made, view) if left else None) is not None:
        name, place = at
        why = f"{name} is read by what stays as well, and would be computed twice"
        left.append(Left(view.label(made.pop(place).part.node), why))
    return made, left


def _read_by_what_stays(made: list[Made], view: View) -> tuple[str, int] | None:
    """A tensor that is to go and is needed, since a part that was planned is left; its part."""
    gone = {i for each in made for i in each.part.nodes}
    staying = (node for i, node in enumerate(view.nodes) if i not in gone)
    read = view.outputs.union(*map(read_by, staying), (m.part.reading.source for m in made))
    read = read.difference(each.part.output for each in made)
    for place, each in enumerate(made):
        for name in (name for i in each.part.nodes for name in view.nodes[i].output):
            if name in read:
                return name, place
    return None


def _made(part: Part, view: View, arrays: Mapping[str, Array]) -> Made:
    parts = {name: arrays[name] for name in part.linear.shapes() if name in arrays}
    dtype = np.dtype(_dtype(part, view, arrays))
    # Every norm has an eps of its own; what is asked of it here is that it saves a variance of 0.
    eps = min(eps_of(part.linear), default=0.0)
    fused = fuse_linear(part.output, part.linear, part.conv, parts, eps=eps, dtype=dtype)
    check = check_linear(part.output, part.linear, part.conv, parts, fused, eps=eps)
    weight = with_zeros(_in_groups(fused.weight, part), part)
    return Made(part, fused, weight, check)


def _dtype(part: Part, view: View, arrays: Mapping[str, Array]) -> str:
    """That of the tensors; every convolution of the part has it."""
    if known := view.dtype(part.output):
        return known
    conv = next(i for i in part.nodes if view.operator(view.nodes[i]) == "Conv")
    return str(arrays[f"{view.nodes[conv].output[0]}.weight"].dtype)


def eps_of(linear: Any) -> Iterable[float]:
    """What every norm of an expression adds to its variances."""
    if getattr(linear, "eps", None) is not None:
        yield linear.eps
    for part in getattr(linear, "parts", ()):
        yield from eps_of(part)


def _in_groups(weight: Array, part: Part) -> Array:
    """The blocks on the diagonal, where there are more than the algebra saw."""
    merged = part.groups // part.conv.groups
    if merged == 1:
        return weight
    outputs, inputs = weight.shape[:2]
    split = weight.reshape(outputs, merged, inputs // merged, *weight.shape[2:])
    own = np.arange(outputs) // (outputs // part.groups) % merged
    return np.ascontiguousarray(split[np.arange(outputs), own])


def with_zeros(weight: Array, part: Part) -> Array:
    """Taps of zero before and behind."""
    around = list(zip(part.window.before, part.window.behind, strict=True))
    return np.pad(weight, [(0, 0), (0, 0), *around])


def rewritten(model: Any, view: View, made: list[Made]) -> Any:
    """A copy of the model in which every part is one convolution."""
    onnx = require("onnx")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    instead = {m.part.node: _conv_node(m, view) for m in made}
    gone = {i for m in made for i in m.part.nodes}
    nodes = remaining(view, {i: node for i, (node, _) in instead.items()}, gone)
    del graph.node[:]
    graph.node.extend(nodes)
    for _, tensors in instead.values():
        graph.initializer.extend(tensors)
        if model.ir_version < _INITIALIZERS_ARE_INPUTS_BEFORE:
            graph.input.extend(_as_input(tensor) for tensor in tensors)
    _drop_what_nothing_reads(graph, view)
    return result


def _conv_node(made: Made, view: View) -> tuple[Any, list[Any]]:
    """The node, and its initializers."""
    helper, numpy_helper = require("onnx.helper"), require("onnx.numpy_helper")
    part = made.part
    arrays = [("weight", made.weight)]
    if made.fused.bias.any():
        arrays.append(("bias", made.fused.bias))
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(array), view.fresh(f"{part.output}.{what}"))
        for what, array in arrays
    ]
    node = helper.make_node(
        "Conv",
        [part.reading.source, *(tensor.name for tensor in tensors)],
        [part.output],
        view.fresh(f"{part.output}.fused"),
        group=part.groups,
        **geometry(part),
    )
    return node, tensors


def geometry(part: Part) -> dict[str, list[int]]:
    """The attributes of its convolution, but for the groups."""
    return {
        "kernel_shape": list(part.window.kernel),
        "strides": list(part.conv.stride),
        "pads": list(part.window.padding),
        "dilations": list(part.conv.dilation),
    }


def _as_input(tensor: Any) -> Any:
    return require("onnx.helper").make_tensor_value_info(
        tensor.name, tensor.data_type, list(tensor.dims)
    )


def nodes_after(view: View, parts: Iterable[Part]) -> int:
    """How many nodes there are when these parts are fused."""
    helper = require("onnx.helper")
    instead = {p.node: helper.make_node("Conv", [p.reading.source], [p.output]) for p in parts}
    return len(remaining(view, instead, {i for p in parts for i in p.nodes}))


def remaining(view: View, instead: Mapping[int, Any], gone: Collection[int]) -> list[Any]:
    """The nodes of a graph in which some stand `instead` of others, and of those that are `gone`.

    What only those read goes with them; what nothing read before stays.
    """
    nodes = [
        instead.get(i, node) for i, node in enumerate(view.nodes) if i in instead or i not in gone
    ]
    while True:
        read = view.outputs.union(*(read_by(node) for node in nodes))
        kept = [
            node
            for node in nodes
            if read.intersection(node.output) or not any(view.readers[n] for n in node.output)
        ]
        if len(kept) == len(nodes):
            return nodes
        nodes = kept


def _drop_what_nothing_reads(graph: Any, view: View) -> None:
    """Initializers and value infos of replaced nodes; what was unread before stays."""
    read = view.outputs.union(*(read_by(node) for node in graph.node))
    there = {name for node in graph.node for name in node.output}
    for kept in (graph.initializer, graph.input, graph.value_info):
        for i in range(len(kept) - 1, -1, -1):
            name = kept[i].name
            if kept is graph.value_info:
                is_spare = name in view.makers and name not in there
            else:
                is_spare = (
                    name in view.initializers and name not in read and bool(view.readers[name])
                )
            if is_spare:
                del kept[i]
