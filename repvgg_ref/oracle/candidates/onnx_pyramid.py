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
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat, ResizeAs
from repvgg_ref.models.graph import Network, Node, extents
from repvgg_ref.models.layers import Block
from repvgg_ref.models.pspnet import REDUCTION
from repvgg_ref.oracle.candidates.onnx_chain import CONVOLUTIONS, Chain, Step, activates
from repvgg_ref.oracle.candidates.onnx_entrance import find_entrance
from repvgg_ref.oracle.candidates.onnx_taps import FLOATS, Taps, chained_blocks
from repvgg_ref.oracle.candidates.onnx_walk import CARRIERS, STRAIGHT, Tap, tap_before, walked_back

_ONLY_LAYOUT = CARRIERS - {"Dropout", "Identity"}
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
        In the order in which the graph joins them, each once, the feature map left out.
    parts : mapping of layer name to Part
        Of the blocks, and of what is between the head's.
    resizes : mapping of layer name to nodes
        The last one's: more than one if it resizes in steps.
    is_doubled : bool
        Whether a floor is joined more than once.
    missing : tuple of str
        The floors of the network that are not there.
    """

    floors: tuple[Floor, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    resizes: Mapping[str, Any] = field(default_factory=dict)
    is_doubled: bool = False
    missing: tuple[str, ...] = ()


def pyramid_chain(chains: Sequence[Chain]) -> Chain:
    """Of the chains to a graph's outputs the first that goes through a pyramid."""
    return next((chain for chain in chains if _joins_at(chain) is not None), chains[0])


def find_pyramid(chain: Chain, arch: Network) -> tuple[Taps, Pyramid]:
    """Match the graph's blocks, and what is between them, to those of `arch`."""
    at = _joins_at(chain)
    backbone = [node.name for node in arch.evaluated if node.name.startswith("stage")]
    front = replace(chain, steps=chain.steps[: len(chain.steps) if at is None else at])
    blocks, first, fitting = chained_blocks(front, arch)
    blocks = blocks if at is not None else blocks[:-1]  # the last is a head's
    integers = chain.entrance.type.tensor_type.elem_type not in FLOATS
    entrance = find_entrance(chain, first, arch.in_channels, integers=integers)
    matched = len(blocks) if len(blocks) == len(backbone) else min(fitting, len(blocks))
    taps = dict(zip(backbone, blocks[:matched], strict=False))
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
    ends, resizes = _ends(chain, at, arch, joined)
    heads = [n.name for n in arch.evaluated if n.name in ends and n is not arch.head]
    parts |= _parts(chain, {name: ends[name] for name in heads}, taps[joined.name])
    pooled = tuple({floor.joined: floor for floor in floors if floor.is_pooled}.values())
    twice = sum(floor.is_pooled for floor in floors) > len(pooled)
    found = Pyramid(pooled, parts, {arch.head.name: resizes}, twice)
    tensors = [t for floor in pooled for t in (floor.pool, floor.block, floor.joined)]
    return Taps(taps | ends, entrance, None, (), problem, tuple(tensors)), found


def channels_of(taps: Taps, pyramid: Pyramid, arch: Network) -> dict[str, int]:
    """How many channels each tensor has that is to be read."""
    wide = extents(arch, REDUCTION + 1, REDUCTION + 1)  # of any size that it takes
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
    if len(set(got)) == len(got) and set(got) <= set(wanted):
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
            resizes[room.name] = (floor.resize,)
    missing = tuple(room.name for room in rooms if pyramid.floors and room.name not in taps)
    return taps, replace(pyramid, parts=parts, resizes=resizes, missing=missing)


def _dropout(arch: Network) -> Node:
    return next(node for node in arch.evaluated if isinstance(node.op, ChannelDropout))


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


def _ends(
    chain: Chain, at: int, arch: Network, joined: Node
) -> tuple[dict[str, Tap], tuple[Any, ...]]:
    """The taps behind the concatenation, and what resizes behind the last convolution."""
    steps = chain.steps
    names = [n.name for n in arch.evaluated if isinstance(n.op, Block)]
    names = names[-2:]  # the head's: 3x3 and classes
    convs = [
        i
        for i in range(at + 1, len(steps))
        if any(node.op_type in CONVOLUTIONS for node in steps[i].nodes)
    ]
    resizes = list[int]()
    found = {}
    if len(convs) >= 2:
        active = [i for i in range(convs[0], convs[1]) if activates(steps[i])]
        found[names[0]] = tap_before(steps, (active or convs[1:])[-1] + bool(active), convs[0])
        dropped = walked_back(steps, convs[1] - 1, convs[0], STRAIGHT, _ONLY_LAYOUT)
        if dropped.step > found[names[0]].step:
            found[_dropout(arch).name] = dropped
        behind = range(convs[1] + 1, len(steps))
        resizes = [i for i in behind if steps[i].nodes[-1].op_type in RESIZERS]
        end = resizes[0] if resizes else len(steps)
        found[names[1]] = walked_back(steps, end - 1, convs[1], STRAIGHT)
    found[arch.head.name] = Tap(chain.output, STRAIGHT, len(steps) - 1)
    return found, tuple(steps[i].nodes[-1] for i in resizes)


def _floor(step: Step, tensor: str) -> Floor:
    """Follow an input of the concatenation back to its pool."""
    makers = {output: node for node in step.nodes for output in node.output}
    resize, joined = _back(makers, tensor, RESIZERS | CONVOLUTIONS)
    if resize is None:
        return Floor(tensor)
    is_resized = resize[-1].op_type in RESIZERS
    block, _ = _carried(makers, resize[-1].input[0] if is_resized else tensor)
    nodes, _ = _back(makers, block, CONVOLUTIONS)
    if nodes is None:
        return Floor(tensor)
    pool, carriers = _carried(makers, nodes[-1].input[0])
    last = resize[-1] if is_resized else None
    read = tuple(reversed([*nodes, *carriers]))
    return Floor(joined if is_resized else tensor, block, pool, last, read)


def _back(
    makers: Mapping[str, Any], tensor: str, ends: frozenset[str]
) -> tuple[list[Any] | None, str]:
    """The nodes from `tensor` back to one of the operators `ends`, and that one's output."""
    nodes = []
    while tensor in makers:
        node = makers[tensor]
        nodes.append(node)
        if node.op_type in ends:
            return nodes, tensor
        tensor = next((t for t in node.input if t in makers), "")
    return None, ""


def _carried(makers: Mapping[str, Any], tensor: str) -> tuple[str, list[Any]]:
    """The tensor of the same values before it is merely carried, and by which nodes."""
    nodes = []
    while tensor in makers and makers[tensor].op_type in CARRIERS:
        nodes.append(makers[tensor])
        tensor = nodes[-1].input[0]
    return tensor, nodes
