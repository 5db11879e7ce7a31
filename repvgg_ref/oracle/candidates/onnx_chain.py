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

from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_load import subgraphs

CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger"})
POOLS = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "QLinearGlobalAveragePool"}
)
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax"})
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
    """`entrance` is the graph's image input (a ValueInfoProto), `steps` lead to its last output."""

    entrance: Any
    steps: tuple[Step, ...]
    constants: Constants


class Constants:
    """Initializers and constant nodes of a graph, and who makes which tensor."""

    def __init__(self, graph: Any) -> None:
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}

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
        while (found := self.tensor(name)) is None and len(passed) < 16:
            node = self.producers.get(name)
            if node is None or node.op_type not in _PASSING or not node.input:
                return None, passed
            passed.append(node)
            name = node.input[0]
        return found, passed


_PASSING = frozenset({"Cast", "Identity", "Transpose", "DequantizeLinear", "QuantizeLinear"})


def chain_of(graph: Any, in_channels: int, name: str) -> Chain:
    """Find the cuts of `graph`.

    Raises
    ------
    CandidateFailure
        If the graph has not one image input, or if no output depends on it.
    """
    constants = Constants(graph)
    entrance = _entrance(graph, constants, in_channels, name)
    order = _sorted_nodes(graph, name)
    reached = {entrance.name}
    forward = []
    for node, inputs in order:
        if node.op_type not in _SHAPES and not reached.isdisjoint(inputs):
            forward.append((node, inputs & reached))
            reached.update(output for output in node.output if output)
    final = _final(graph, forward, entrance.name, constants, name)
    needed = {final}
    for node, inputs in reversed(forward):
        if not needed.isdisjoint(node.output):
            needed |= inputs
    return Chain(entrance, tuple(_steps(forward, needed, entrance.name)), constants)


def block_convolutions(chain: Chain, *, pointwise: bool) -> list[list[Any]]:
    """The convolutions of each step that are a block's, not squeeze-and-excitation's or the head's.

    Those of more than one tap are; where the network has blocks of one tap (`pointwise`), so are
    all others in front of the global pool, but for a gate's.
    """
    steps = chain.steps
    pools = [i for i, step in enumerate(steps) if step.single in POOLS | REDUCTIONS]
    end = pools[-1] if pools else len(steps)
    return [
        [
            node
            for node in step.nodes
            if _has_taps(node, chain.constants)
            or (pointwise and i < end and node.op_type in CONVOLUTIONS and not is_gate(step))
        ]
        for i, step in enumerate(steps)
    ]


def is_gate(step: Step) -> bool:
    """Whether a step is squeeze-and-excitation."""
    return any(node.op_type in _GATES for node in step.nodes)


def _has_taps(node: Any, constants: Constants) -> bool:
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


def attribute(node: Any, name: str) -> Any | None:
    """The attribute called `name`, if the node has it."""
    return next((a for a in node.attribute if a.name == name), None)


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


def _final(
    graph: Any, forward: list[tuple[Any, set[str]]], start: str, constants: Constants, name: str
) -> str:
    """The graph output behind most convolutions, and among those behind most nodes."""
    depth = {start: (0, 0)}
    for node, inputs in forward:
        convolutions, nodes = max(depth[tensor] for tensor in inputs)
        here = (convolutions + _has_taps(node, constants), nodes + 1)
        depth |= {output: here for output in node.output if output}
    reached = [str(value.name) for value in graph.output if value.name in depth]
    if not reached or max(reached, key=depth.__getitem__) == start:
        raise CandidateFailure(f"{name}: no output of the graph depends on its input")
    return max(reached, key=depth.__getitem__)


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
