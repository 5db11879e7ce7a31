"""Which tensor of an ONNX graph is which layer of a network that is no chain: told by its wiring.

The network is followed from the image on: a block is the convolution that reads its source, and
what follows it one by one (a batch norm, an activation); a sum is the addition that reads what it
adds. Where one of them cannot be told, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.files.onnx_graph.constants import Constants
from repvgg_ref.models.graph import INPUT, Network, Node
from repvgg_ref.models.layers import AddRelu, Block, Flatten, GlobalAvgPool, MaxPool
from repvgg_ref.oracle.candidates.base import FileEvidence
from repvgg_ref.oracle.candidates.onnx_chain import ACTIVATIONS, Chain, Step
from repvgg_ref.oracle.candidates.onnx_evidence import SeenBlocks, classifier_of, left_on
from repvgg_ref.oracle.candidates.onnx_reading import NCHW, Reading, unread
from repvgg_ref.oracle.candidates.onnx_rules import reader
from repvgg_ref.oracle.report import Finding

_SAME = frozenset({"Identity", "Dropout"})
_ACTING = ACTIVATIONS | frozenset({"Elu", "HardSigmoid", "PRelu", "Sigmoid", "Softplus", "Tanh"})
_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div"})  # if their other operand is a constant
_JOINING = frozenset({"Add", "Sum", "Sub", "Mul", "Concat"})
_FLAT = _SAME | frozenset({"Flatten", "Reshape", "Squeeze"})
_WINDOWS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_MATRICES = frozenset({"Gemm", "MatMul"})


@dataclass(frozen=True)
class Part:
    """What a layer is made of: the tensor it reads, its nodes, and the tensor that it gives."""

    start: str
    nodes: tuple[Any, ...]
    end: str

    @property
    def acts(self) -> bool:
        """Whether an activation is among them."""
        return any(node.op_type in _ACTING for node in self.nodes)


class _Wires:
    """A graph from its tensors' readers on."""

    def __init__(self, graph: Any) -> None:
        self.constants = Constants(graph)
        self.outputs = {value.name for value in graph.output}
        self._readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def readers(self, tensor: str, kinds: frozenset[str]) -> list[Any]:
        """The nodes of some kinds that read a tensor."""
        return [node for node in self._readers.get(tensor, ()) if node.op_type in kinds]

    def followed(self, node: Any, kinds: frozenset[str] | None = None) -> Part:
        """A node and what follows it one by one, `kinds` or what belongs to a layer."""
        nodes = [node]
        while (after := self._only_reader(nodes[-1].output[0])) is not None:
            if not (after.op_type in kinds if kinds else self._belongs(after)):
                break
            nodes.append(after)
        return Part(node.input[0], tuple(nodes), nodes[-1].output[0])

    def _only_reader(self, tensor: str) -> Any | None:
        readers = self._readers.get(tensor, ())
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def _belongs(self, node: Any) -> bool:
        if node.op_type in _SAME | _ACTING | {"BatchNormalization"}:
            return True
        known = [self.constants.value(name) is not None for name in node.input]
        return node.op_type in _CONSTANT and known.count(False) == 1


def wired_parts(graph: Any, arch: Network, entrance: str) -> dict[str, Part]:
    """Node of `arch` -> its part of the graph; empty if one cannot be told.

    Of what only hands on (a flattening, a mean) there is none, nor of a block whose ReLU comes
    behind the pool that follows it: then the pool's part has it.
    """
    wires, ends = _Wires(graph), {INPUT: entrance}
    found: dict[str, Part] = {}
    used: set[int] = set()
    for node in arch.evaluated:
        sources = [ends[name] for name in node.inputs]
        if isinstance(node.op, GlobalAvgPool | Flatten):
            ends[node.name] = sources[0]
            continue
        if node is arch.head:
            continue
        parts = [each for each in _parts(node, sources, wires) if id(each.nodes[0]) not in used]
        if len(parts) != 1:
            return {}
        found[node.name], ends[node.name] = parts[0], parts[0].end
        used.add(id(parts[0].nodes[0]))
    late = _with_late_relu(found, arch)
    return {name: part for name, part in found.items() if name not in late}


def _parts(node: Node, sources: Sequence[str], wires: _Wires) -> list[Part]:
    """What may be the node."""
    op = node.op
    if isinstance(op, Block):
        convs = wires.readers(sources[0], frozenset({"Conv"}))
        return _best([wires.followed(conv) for conv in convs], op.spec, wires)
    if isinstance(op, AddRelu):
        joins = [join for tensor in sources for join in wires.readers(tensor, _JOINING)]
        unique = list({id(join): join for join in joins}.values())
        both = [join for join in unique if set(sources) <= set(join.input)]
        return [wires.followed(join) for join in both or unique]
    if isinstance(op, MaxPool):
        return [wires.followed(pool) for pool in wires.readers(sources[0], _WINDOWS)]
    return [wires.followed(matrix) for matrix in _matrices(sources[0], wires)]


def _matrices(tensor: str, wires: _Wires) -> Iterator[Any]:
    """The products that read a tensor, flattened maybe."""
    yield from wires.readers(tensor, _MATRICES)
    for node in wires.readers(tensor, _FLAT):
        yield from wires.readers(wires.followed(node, _FLAT).end, _MATRICES)


def _best(parts: list[Part], spec: BlockSpec, wires: _Wires) -> list[Part]:
    """Of several convolutions of one tensor the block's: by their sizes, then by what reads them.

    A block without an activation is added to another's output.
    """
    if len(parts) > 1:
        wanted = (spec.out_channels, *fused_conv(spec).kernel)
        sizes = [wires.constants.value(part.nodes[0].input[1]) for part in parts]
        fits = [
            part
            for part, weight in zip(parts, sizes, strict=True)
            if weight is not None and (weight.shape[0], *weight.shape[2:]) == wanted
        ]
        parts = fits or parts
    if len(parts) > 1:
        added = spec.activation == "none"
        fits = [p for p in parts if bool(wires.readers(p.end, _JOINING)) == added]
        parts = fits or parts
    return parts


def _with_late_relu(found: Mapping[str, Part], arch: Network) -> set[str]:
    """Blocks whose ReLU stands behind the pool: the larger of two is the same before and after."""
    late = set()
    for node in arch.evaluated:
        if isinstance(node.op, MaxPool) and (before := found.get(node.inputs[0])):
            spec = arch.block(node.inputs[0])
            if spec.activation == "relu" and not before.acts and found[node.name].acts:
                late.add(node.inputs[0])
    return late


def wired_evidence(
    graph: Any, arch: Network, parts: Mapping[str, Part], entrance: Any
) -> FileEvidence:
    """The kernels of the blocks that were found and of a mean's head, and what is left on."""
    step = Step(graph.output[0].name, tuple(graph.node))
    chain = Chain(entrance, (step,), Constants(graph))
    seen, findings = SeenBlocks(chain), list[Finding]()
    for spec in arch.blocks:
        if (part := parts.get(spec.name)) is not None:
            seen.look(spec, _read(chain, part, spec.in_channels))
            findings += left_on(part.nodes, spec.name, chain)
    *_, last, pool, head = arch.evaluated
    if isinstance(pool.op, GlobalAvgPool) and head.name == "linear":
        whole = Part(parts[last.name].end, step.nodes, chain.output)
        reading = _read(chain, whole, arch.features)
        if reading is not None and (kernel := classifier_of(reading)) is not None:
            seen.kernels[head.name] = kernel
    return seen.evidence([*seen.findings, *findings])


def _read(chain: Chain, part: Part, channels: int) -> Reading | None:
    read = reader(chain.constants, {part.start: unread(channels, NCHW)})
    read.read(part.nodes)
    return read.found.get(part.end)


def wired_tensors(arch: Network, parts: Mapping[str, Part]) -> dict[str, str]:
    """Layer -> the tensor that holds its output."""
    return {name: parts[name].end for name in arch.layer_names if name in parts}
