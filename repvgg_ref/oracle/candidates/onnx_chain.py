"""An ONNX graph as a chain: the tensors that everything from input to output passes through.

A RepVGG is a chain of blocks, however its inside is written: three branches or one kernel, with
squeeze-and-excitation or without. So a block's output is a *cut* of the graph, a tensor without
which no path from the image to the logits remains, and cuts are found without reading a name.

In a topological order a tensor is a cut exactly if no edge jumps over it: a path that avoids it
would have to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import Constants, attribute, setting
from repvgg_ref.files.onnx_graph.functions import subgraphs
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_blocked import blocked_tensors

CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger"})
POOLS = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "QLinearGlobalAveragePool"}
)
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax"})
ACTIVATIONS = frozenset({"Relu", "Clip", "Max", "Min", "LeakyRelu", "HardSwish", "Gelu"})
_GATES = frozenset({"Sigmoid", "HardSigmoid"})
# They make shapes of data; what depends on the image through them alone is no activation.
_SHAPES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Step:
    """The nodes between two cuts, and the tensor that they make together."""

    tensor: str
    nodes: tuple[Any, ...]

    @property
    def single(self) -> str:
        """The operator, if the step is one node; else nothing."""
        return str(self.nodes[0].op_type) if len(self.nodes) == 1 else ""


@dataclass(frozen=True)
class Chain:
    """`entrance` is the graph's image input (a ValueInfoProto), `steps` lead to one of its outputs.

    `blocked` are the tensors that ONNX Runtime keeps in its own layout.
    """

    entrance: Any
    steps: tuple[Step, ...]
    constants: Constants
    blocked: frozenset[str] = frozenset()

    @property
    def output(self) -> str:
        """The graph's output that it leads to."""
        return self.steps[-1].tensor


def chains_of(graph: Any, in_channels: int, name: str, opset: int = 17) -> list[Chain]:
    """The chain to each output of `graph` that depends on its input, in the graph's order.

    Raises
    ------
    CandidateFailure
        If the graph has not one image input, or if no output depends on it.
    """
    constants = Constants(graph, opset)
    entrance = _entrance(graph, constants, in_channels, name)
    reached = {entrance.name}
    forward = []
    for node, inputs in _sorted_nodes(graph, name):
        if node.op_type not in _SHAPES and not reached.isdisjoint(inputs):
            forward.append((node, inputs & reached))
            reached.update(output for output in node.output if output)
    reached.discard(entrance.name)
    outputs = list(dict.fromkeys(str(v.name) for v in graph.output if v.name in reached))
    if not outputs:
        raise CandidateFailure(f"{name}: no output of the graph depends on its input")
    blocked = blocked_tensors(node for node, _ in forward)
    return [
        Chain(entrance, _steps_to(output, forward, entrance.name), constants, blocked)
        for output in outputs
    ]


def _steps_to(output: str, forward: list[tuple[Any, set[str]]], start: str) -> tuple[Step, ...]:
    needed = {output}
    for node, inputs in reversed(forward):
        if not needed.isdisjoint(node.output):
            needed |= inputs
    return tuple(_steps(forward, needed, start))


def block_convolutions(chain: Chain, *, pointwise: bool) -> list[list[Any]]:
    """The convolutions of each step that are a block's, not squeeze-and-excitation's or the head's.

    Those of more than one tap are, unless they are a mean; where the network has blocks of one tap
    (`pointwise`), so are all others that an activation follows, but for a gate's.
    """
    steps, constants = chain.steps, chain.constants
    pools = [i for i, step in enumerate(steps) if is_pool(step, constants)]
    end = pools[-1] if pools else len(steps)
    active = [i for i, step in enumerate(steps[:end]) if activates(step)]
    end = active[-1] + 1 if active else end
    return [
        [
            node
            for node in step.nodes
            if node.op_type in CONVOLUTIONS
            and not is_mean(node, constants)
            and (has_taps(node, constants) or (pointwise and i < end and not is_gate(step)))
        ]
        for i, step in enumerate(steps)
    ]


def activates(step: Step) -> bool:
    """Whether a step is, or ends in, a block's activation."""
    if not step.nodes or is_gate(step):
        return False
    last = step.nodes[-1]
    fused = last.op_type in CONVOLUTIONS and bool(setting(last, "activation", ""))
    return fused or last.op_type in ACTIVATIONS


def is_pool(step: Step, constants: Constants) -> bool:
    """Whether a step is one node that pools; a window of one pixel only takes every so many."""
    if step.single in ("AveragePool", "MaxPool", "NhwcMaxPool"):
        return any(n > 1 for n in setting(step.nodes[0], "kernel_shape", ()))
    return step.single in POOLS | REDUCTIONS or (
        step.single in CONVOLUTIONS and is_mean(step.nodes[0], constants)
    )


def is_mean(node: Any, constants: Constants) -> bool:
    """Whether a convolution is a mean: depthwise, several taps, all alike and adding up to 1."""
    if node.op_type not in CONVOLUTIONS or setting(node, "group", 1) < 2 or len(node.input) != 2:
        return False
    dims = weight_dims(node, constants)
    if dims is None or len(dims) != 4 or dims[1] != 1 or dims[0] != setting(node, "group"):
        return False
    taps = constants.value(node.input[1])
    return taps is not None and taps[0].size > 1 and averages(taps)


def averages(taps: Array) -> bool:
    """Whether all of `taps` (O, ...) are one over their number, as near as their type can say."""
    error = np.abs(np.asarray(taps, np.float64) * taps[0].size - 1).max()
    return bool(error <= 2 * float(np.finfo(taps.dtype).eps))


def is_gate(step: Step) -> bool:
    """Whether a step is squeeze-and-excitation."""
    return any(node.op_type in _GATES for node in step.nodes)


def has_taps(node: Any, constants: Constants) -> bool:
    """Whether it is a convolution of more than one tap."""
    if node.op_type not in CONVOLUTIONS:
        return False
    kernel = attribute(node, "kernel_shape")
    extents = list(kernel.ints) if kernel is not None else (weight_dims(node, constants) or ())[2:]
    return any(extent > 1 for extent in extents)


def weight_dims(node: Any, constants: Constants) -> tuple[int, ...] | None:
    """Shape of a convolution's weight as the convolution sees it; None if it is computed."""
    place = 3 if node.op_type == "QLinearConv" else 1
    tensor, passed = constants.origin(node.input[place]) if len(node.input) > place else (None, [])
    if tensor is None:
        return None
    dims = tuple(tensor.dims)
    for step in reversed(passed):
        perm = attribute(step, "perm")
        if step.op_type == "Transpose":
            axes = list(perm.ints) if perm is not None else list(range(len(dims)))[::-1]
            if sorted(axes) != list(range(len(dims))):
                return None
            dims = tuple(dims[axis] for axis in axes)
    return dims


def _entrance(graph: Any, constants: Constants, in_channels: int, name: str) -> Any:
    inputs = [value for value in graph.input if value.name not in constants.initializers]
    if len(inputs) != 1:
        raise CandidateFailure(
            f"{name}: needs one input, a batch of images",
            got=listed(value.name for value in inputs) or "no input",
            wanted=f"(N, {in_channels}, H, W)",
        )
    return inputs[0]


def _sorted_nodes(graph: Any, name: str) -> list[tuple[Any, set[str]]]:
    """Nodes with the tensors they read (inside branches too), producers first."""
    reads = [(node, _reads(node)) for node in graph.node]
    outputs = [output for node in graph.node for output in node.output if output]
    made = set(outputs)
    if len(made) < len(outputs):
        raise CandidateFailure(f"{name}: two nodes of the graph make the same tensor")
    waiting: dict[str, list[int]] = {}
    missing = []
    for i, (_, inputs) in enumerate(reads):
        wanted = inputs & made
        missing.append(len(wanted))
        for tensor in wanted:
            waiting.setdefault(tensor, []).append(i)
    ready = [i for i, count in enumerate(missing) if not count][::-1]
    done = []
    while ready:
        i = ready.pop()
        done.append(reads[i])
        for output in reads[i][0].output:
            for j in waiting.pop(output, ())[::-1]:
                missing[j] -= 1
                if not missing[j]:
                    ready.append(j)
    if len(done) != len(reads):
        raise CandidateFailure(f"{name}: the graph has a loop")
    return done


def _reads(node: Any) -> set[str]:
    """The tensors a node reads: its inputs, and what its subgraphs take from outside."""
    found = {tensor for tensor in node.input if tensor}
    for inner in subgraphs(node):
        own = {v.name for v in inner.input} | {t.name for t in inner.initializer}
        own |= {output for child in inner.node for output in child.output}
        for child in inner.node:
            found |= _reads(child) - own
        found |= {value.name for value in inner.output} - own
    return found


def _steps(forward: list[tuple[Any, set[str]]], needed: set[str], start: str) -> Iterator[Step]:
    """Cut the nodes that lead to the final tensor wherever no edge jumps over a tensor."""
    position = {start: 0}
    nodes = [(node, inputs) for node, inputs in forward if not needed.isdisjoint(node.output)]
    for node, _ in nodes:
        for output in node.output:
            if output in needed:
                position[output] = len(position)
    reach = [0] * len(position)  # how far edges lead from each tensor
    for node, inputs in nodes:
        end = max(position[output] for output in node.output if output in needed)
        for tensor in inputs & needed:
            reach[position[tensor]] = max(reach[position[tensor]], end)
    names = list(position)
    furthest, cuts = 0, []
    for i in range(len(names)):
        if i and furthest <= i:
            cuts.append(i)
        furthest = max(furthest, reach[i])
    members: dict[int, list[Any]] = {cut: [] for cut in cuts}
    ends = iter(cuts)
    end = next(ends, 0)
    for node, _ in nodes:
        first = min(position[output] for output in node.output if output in needed)
        while first > end:
            end = next(ends)
        members[end].append(node)
    for cut in cuts:
        yield Step(names[cut], tuple(members[cut]))
