"""Which tensor of an ONNX graph is which output of a PSPNet: by how the graph is wired.

Backbone and head are chains: their blocks are found as `onnx_taps` finds those of a chain. Between
them stands the one step of the graph that concatenates; its floors are followed back from the
concatenation, through resizing and convolution to the pool. Which floor of the network each of
them is, is told by how many bins its pool gives when it is run, so that another order of the parts
is seen where they are joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import AdaptiveAvgPool, Concat, ResizeAs
from repvgg_ref.models.graph import Network, Node, extents
from repvgg_ref.models.layers import Block
from repvgg_ref.oracle.candidates.onnx_chain import CONVOLUTIONS, Chain, Step
from repvgg_ref.oracle.candidates.onnx_entrance import find_entrance
from repvgg_ref.oracle.candidates.onnx_taps import FLOATS, Taps, chained_blocks
from repvgg_ref.oracle.candidates.onnx_walk import CARRIERS, STRAIGHT, Tap, tap_before, walked_back

RESIZERS = frozenset({"Resize", "Upsample"})


@dataclass(frozen=True)
class Part:
    """A block's nodes in the graph, from the tensor that enters it to its output."""

    start: Tap
    nodes: tuple[Any, ...]
    tensor: str


@dataclass(frozen=True)
class Floor:
    """One input of the concatenation; empty texts where there is no such thing on its way."""

    joined: str
    block: str = ""
    pool: str = ""
    resize: Any = None
    nodes: tuple[Any, ...] = ()

    @property
    def is_pooled(self) -> bool:
        """Whether it is a floor of the pyramid, not the feature map."""
        return bool(self.block)


@dataclass(frozen=True)
class Pyramid:
    """What was found of a PSPNet in a graph, beside its `Taps`.

    Attributes
    ----------
    floors : tuple of Floor
        In the order in which the graph joins them, the feature map left out.
    parts : mapping of block name to Part
        Of backbone and head.
    resizes : mapping of layer name to node
        The last one's.
    """

    floors: tuple[Floor, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    resizes: Mapping[str, Any] = field(default_factory=dict)


def pyramid_chain(chains: Sequence[Chain]) -> Chain:
    """Of the chains to a graph's outputs the first that goes through a pyramid."""
    return next((chain for chain in chains if _joins_at(chain) is not None), chains[0])


def find_pyramid(chain: Chain, arch: Network) -> tuple[Taps, Pyramid]:
    """Match the graph's blocks, and what is between them, to those of `arch`."""
    at = _joins_at(chain)
    backbone = [node.name for node in arch.evaluated if node.name.startswith("stage")]
    front = replace(chain, steps=chain.steps[: len(chain.steps) if at is None else at])
    blocks, first = chained_blocks(front, len(backbone))
    integers = chain.entrance.type.tensor_type.elem_type not in FLOATS
    entrance = find_entrance(chain, first, arch.in_channels, integers=integers)
    taps = dict(zip(backbone, blocks, strict=False))
    start = entrance.start or Tap(chain.entrance.name, entrance.perm)
    parts = _parts(chain, taps, start)
    problem = None
    if len(blocks) != len(backbone):
        problem = (
            f"the backbone has {len(blocks)} convolution blocks, {arch.name} has {len(backbone)}"
        )
    if at is None:
        problem = "the graph has no pyramid: nothing in it concatenates pooled features"
        head = {arch.head.name: Tap(chain.output, STRAIGHT)}
        return Taps(taps | head, entrance, None, (), problem), Pyramid(parts=parts)
    floors = tuple(_floor(chain.steps[at], tensor) for tensor in _concat(chain.steps[at]).input)
    joined = next(node for node in arch.evaluated if isinstance(node.op, Concat))
    taps[joined.name] = Tap(chain.steps[at].tensor, STRAIGHT, at)
    ends, resize = _ends(chain, at, arch, joined)
    parts |= _parts(chain, {n: ends[n] for n in ends if n != arch.head.name}, taps[joined.name])
    pooled = tuple(floor for floor in floors if floor.is_pooled)
    found = Pyramid(pooled, parts, {} if resize is None else {arch.head.name: resize})
    tensors = [t for floor in pooled for t in (floor.pool, floor.block, floor.joined)]
    return Taps(taps | ends, entrance, None, (), problem, tuple(tensors)), found


def channels_of(taps: Taps, pyramid: Pyramid, arch: Network) -> dict[str, int]:
    """How many channels each tensor has that is to be read."""
    wide = extents(arch, arch.reduction + 1, arch.reduction + 1)  # of any size that it takes
    found = {tap.tensor: wide[name][0] for name, tap in taps.blocks.items()}
    room = next(node for node in arch.evaluated if isinstance(node.op, ResizeAs))
    narrow, features = (wide[name][0] for name in room.inputs)
    for floor in pyramid.floors:
        found |= {floor.block: narrow, floor.joined: narrow, floor.pool: features}
    return found


def placed(
    pyramid: Pyramid, found: Mapping[str, Array], arch: Network
) -> tuple[dict[str, Tap], Pyramid]:
    """Give the floors their names: by the bins that their pools gave, in `found`.

    If those are others than the network's, by their order.
    """
    nodes = {node.name: node for node in arch.evaluated}
    rooms = [n for n in arch.evaluated if isinstance(n.op, ResizeAs)]
    wanted = [_bins(room, nodes) for room in rooms]
    got = [found[floor.pool].shape[2] if floor.pool else 0 for floor in pyramid.floors]
    places = list(range(len(got)))
    if sorted(got) == sorted(wanted):
        places = [wanted.index(bins) for bins in got]
    taps, parts, resizes = dict[str, Tap](), dict(pyramid.parts), dict(pyramid.resizes)
    for floor, place in zip(pyramid.floors, places, strict=True):
        if place >= len(rooms):
            continue
        room = rooms[place]
        block = nodes[room.inputs[0]]
        taps[room.name] = Tap(floor.joined, STRAIGHT)
        taps[block.name] = Tap(floor.block, STRAIGHT)
        if floor.pool:
            taps[block.inputs[0]] = Tap(floor.pool, STRAIGHT)
            parts[block.name] = Part(Tap(floor.pool, STRAIGHT), floor.nodes, floor.block)
        if floor.resize is not None:
            resizes[room.name] = floor.resize
    return taps, replace(pyramid, parts=parts, resizes=resizes)


def _bins(room: Node, nodes: Mapping[str, Node]) -> int:
    pool = nodes[nodes[room.inputs[0]].inputs[0]].op
    assert isinstance(pool, AdaptiveAvgPool)
    return pool.bins


def _joins_at(chain: Chain) -> int | None:
    """The last step that ends in a concatenation of what convolutions in it give."""
    for at in reversed(range(len(chain.steps))):
        step = chain.steps[at]
        if _concat(step) is not None and any(n.op_type in CONVOLUTIONS for n in step.nodes):
            return at
    return None


def _concat(step: Step) -> Any:
    """The concatenation that makes the step's tensor, or None."""
    last = next((n for n in step.nodes if step.tensor in n.output), None)
    return last if last is not None and last.op_type == "Concat" else None


def _parts(chain: Chain, taps: Mapping[str, Tap], start: Tap) -> dict[str, Part]:
    """The nodes of blocks that follow one another in the chain."""
    found = {}
    for name, tap in taps.items():
        steps = chain.steps[start.step + 1 : tap.step + 1]
        found[name] = Part(start, tuple(n for step in steps for n in step.nodes), tap.tensor)
        start = tap
    return found


def _ends(chain: Chain, at: int, arch: Network, joined: Node) -> tuple[dict[str, Tap], Any]:
    """The taps behind the concatenation, and the last resizing."""
    steps = chain.steps
    names = [n.name for n in arch.evaluated if isinstance(n.op, Block)]
    names = names[-2:]  # the head's: 3x3 and classes
    convs = [
        i
        for i in range(at + 1, len(steps))
        if any(node.op_type in CONVOLUTIONS for node in steps[i].nodes)
    ]
    resizes = [i for i in range(at + 1, len(steps)) if steps[i].nodes[-1].op_type in RESIZERS]
    found = {}
    if len(convs) >= 2:
        found[names[0]] = tap_before(steps, convs[1], convs[0])
        end = resizes[-1] if resizes and resizes[-1] > convs[1] else len(steps)
        found[names[1]] = walked_back(steps, end - 1, convs[1], STRAIGHT)
    found[arch.head.name] = Tap(chain.output, STRAIGHT, len(steps) - 1)
    return found, steps[resizes[-1]].nodes[-1] if resizes else None


def _floor(step: Step, tensor: str) -> Floor:
    """Follow an input of the concatenation back to its pool."""
    makers = {output: node for node in step.nodes for output in node.output}

    def carried(tensor: str) -> str:
        while tensor in makers and makers[tensor].op_type in CARRIERS:
            tensor = makers[tensor].input[0]
        return tensor

    joined = carried(tensor)
    maker = makers.get(joined)
    if maker is None:
        return Floor(joined)
    resize = maker if maker.op_type in RESIZERS else None
    block = carried(maker.input[0]) if resize is not None else joined
    nodes, at = list[Any](), block
    while at in makers:
        node = makers[at]
        nodes.append(node)
        data = [t for t in node.input if t in makers]
        if node.op_type in CONVOLUTIONS:
            pool = carried(node.input[0])
            return Floor(joined, block, pool, resize, tuple(reversed(nodes)))
        if not data:
            break
        at = data[0]
    return Floor(joined)
