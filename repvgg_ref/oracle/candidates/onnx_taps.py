"""Which tensor of an ONNX graph is which layer's output: by position in the chain, not by name.

Between two cuts with a convolution in them lies what belongs to the first: batch norm, SE, ReLU. So
a block's output is the cut in front of the next block's convolution, or in front of what only
carries it there (a cast, a transposition, a border of zeros); the last block's is the cut in front
of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_chain import (
    Chain,
    Step,
    block_convolutions,
    weight_dims,
)
from repvgg_ref.oracle.candidates.onnx_entrance import Entrance, find_entrance
from repvgg_ref.oracle.candidates.onnx_head import Ending, find_ending, last_block
from repvgg_ref.oracle.candidates.onnx_walk import STRAIGHT, Tap, tap_before, walked_back

FLOATS = frozenset({1, 10, 11, 16})  # TensorProto.DataType


@dataclass(frozen=True)
class Taps:
    """What to read from a graph.

    Attributes
    ----------
    blocks : dict of block name -> Tap
    entrance : Entrance
        What is in front of the first block.
    ending : Ending or None
        The classifier and what is behind it.
    notes : tuple of str
    problem : str or None
        The graph has not as many blocks as the network.
    unnamed : tuple of str
        Tensors to read whose layers are told by what they hold.
    """

    blocks: dict[str, Tap]
    entrance: Entrance
    ending: Ending | None
    notes: tuple[str, ...]
    problem: str | None
    unnamed: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[str]:
        """All tensors to read, each once."""
        taps = [*self.blocks.values(), *filter(None, [self.entrance.start])]
        names = [tap.tensor for tap in taps]
        if self.ending is not None:
            names += [self.ending.logits.tensor, self.ending.output]
        names += self.unnamed
        return list(dict.fromkeys(names))


def judged_chain(chains: Sequence[Chain], arch: Network) -> Chain:
    """The chain to the output that is judged.

    Of the outputs behind the right number of blocks, or the nearest to it, those behind a
    classifier; of these the first in the graph's order, which users read.
    """

    def rank(chain: Chain) -> tuple[int, bool]:
        steps = [i for i, own in enumerate(_depths(chain, arch)) if own]
        ending = find_ending(chain, steps[-1] if steps else -1, arch)
        return -abs(len(steps) - len(arch.blocks)), ending is not None

    return chains[0] if len(chains) == 1 else max(chains, key=rank)


def find_taps(chain: Chain, arch: Network) -> Taps:
    """Match the graph's blocks to those of `arch`, in order."""
    steps, notes = chain.steps, []
    mains = block_convolutions(chain, pointwise=has_pointwise(arch))
    depths = _depths(chain, arch)
    blocks = [i for i, depth in enumerate(depths) if depth]
    knotted = next((k for k, i in enumerate(blocks) if depths[i] > 1), None)
    outputs = [tap_before(steps, blocks[k + 1], blocks[k]) for k in range(len(blocks) - 1)]
    if blocks:
        outputs.append(last_block(chain, blocks[-1]))
    wanted, problem = len(arch.blocks), None
    matched = wanted
    if knotted is not None:
        matched = min(knotted, _fitting(chain, mains, blocks, arch))
        notes.append(f"blocks after the {matched}. are not separated in the graph: not compared")
    elif blocks and len(blocks) != wanted:
        matched = _fitting(chain, mains, blocks, arch)
        problem = f"the graph has {len(blocks)} convolution blocks, {arch.name} has {wanted}"
    elif not blocks:
        notes.append("no convolution was recognised in the graph: only logits are compared")
    integers = chain.entrance.type.tensor_type.elem_type not in FLOATS
    first = blocks[0] if blocks else len(steps)
    return Taps(
        dict(zip(arch.layer_names[:matched], outputs, strict=False)),
        find_entrance(chain, first, arch.in_channels, integers=integers),
        find_ending(chain, blocks[-1] if blocks else -1, arch),
        tuple(notes),
        problem,
    )


def chained_blocks(chain: Chain, arch: Network) -> tuple[list[Tap], int, int]:
    """The outputs of a chain's blocks of several taps, up to its end; and two numbers.

    The step of the first block, and how many blocks from the front are those of `arch`.
    """
    steps, mains = chain.steps, block_convolutions(chain, pointwise=False)
    blocks = [i for i, own in enumerate(mains) if own]
    if not blocks:
        return [], len(steps), 0
    found = [tap_before(steps, blocks[k + 1], blocks[k]) for k in range(len(blocks) - 1)]
    found.append(walked_back(steps, len(steps) - 1, blocks[-1], STRAIGHT))
    return found, blocks[0], _fitting(chain, mains, blocks, arch)


def has_pointwise(arch: Network) -> bool:
    """Whether some block of the fused network is a 1x1 convolution."""
    return any(fused_conv(spec).kernel == (1, 1) for spec in arch.blocks)


def _depths(chain: Chain, arch: Network) -> list[int]:
    """How many block convolutions follow one another within each step."""
    mains = block_convolutions(chain, pointwise=has_pointwise(arch))
    return [_depth(step, own) for step, own in zip(chain.steps, mains, strict=True)]


def _depth(step: Step, mains: list[Any]) -> int:
    depth: dict[str, int] = {}
    for node in step.nodes:  # in topological order
        behind = max((depth.get(tensor, 0) for tensor in node.input), default=0)
        here = behind + any(node is main for main in mains)
        depth |= dict.fromkeys(node.output, here)
    return depth.get(step.tensor, 0)


def _fitting(chain: Chain, mains: Sequence[list[Any]], blocks: Sequence[int], arch: Network) -> int:
    """How many blocks from the front have the network's widths and strides."""
    for k, (i, spec) in enumerate(zip(blocks, arch.blocks, strict=False)):
        dims = weight_dims(mains[i][0], chain.constants)
        stride = [*setting(mains[i][0], "strides", ()), 1][0]
        if len(mains[i]) == 1 and (
            stride != spec.stride or (dims is not None and dims[0] != spec.out_channels)
        ):
            return k
    return min(len(blocks), len(arch.blocks))


def named_outputs(chain: Chain, taps: Taps, outputs: Sequence[str]) -> list[str]:
    """What to say of a graph's `outputs`, if there are several: which is judged, which are not."""
    if len(outputs) < 2:
        return []
    others = [name for name in outputs if name != chain.output and name not in taps.tensors]
    said = f"judged: the graph's output {listed([chain.output])}"
    return [said + (f"; not judged: {listed(others)}" if others else ", and layers on its way")]
