"""Which blocks a RepVGG is made of: the 14 official models, RepVGGplus-L2pse and any custom width.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again" (arXiv 2101.03697), section
3.4 with Tables 2 and 3. D2se and RepVGGplus-L2pse appear in the official repository only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

from repvgg_ref.blocks.catalogue import block_kind
from repvgg_ref.blocks.catalogue import kind as kind_called
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.errors import CheckpointError, ShapeError, did_you_mean, require_equal
from repvgg_ref.models.arguments import NO_HEAD, require_counts
from repvgg_ref.models.graph import INPUT, Network, Node
from repvgg_ref.models.layers import Block, GlobalAvgPool, Linear

FEATURES = "features"  # what the output of a network without a head is called
AUX_WEIGHT = 0.1  # of an auxiliary head's loss, in the official trainer


@dataclass(frozen=True, slots=True)
class AuxHeadSpec:
    """An auxiliary classifier of RepVGGplus: conv 3x3 stride 2 + BN + ReLU, pool, linear.

    It hangs on the output of block `after` and exists in training only.
    """

    name: str
    after: str
    channels: int


@dataclass(frozen=True)
class Architecture(Network):
    """A chain: blocks, global average pool, one linear layer, and heads that help to train it.

    Of no classes it is a backbone: the mean of its features is what it gives.
    """

    name: str
    blocks: tuple[BlockSpec, ...]
    num_classes: int = 1000
    aux_heads: tuple[AuxHeadSpec, ...] = ()

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The same as a graph."""
        nodes: list[Node] = []
        last = INPUT
        for spec in self.blocks:
            nodes.append(Node(spec.name, Block(spec), (last,)))
            last = spec.name
            for head in self.aux_heads:
                if head.after == last:
                    nodes += _aux_nodes(head, self.num_classes)
        if not self.num_classes:
            return (*nodes, Node(FEATURES, GlobalAvgPool(), (last,)))
        linear = Linear(self.blocks[-1].out_channels, self.num_classes)
        nodes.append(Node("pool", GlobalAvgPool(), (last,)))
        nodes.append(Node("linear", linear, ("pool",), loss_weight=1.0))
        return tuple(nodes)

    def with_classes(self, num_classes: int) -> Architecture:
        """The same with another number of logits, auxiliary ones too."""
        return replace(self, num_classes=num_classes)


def _aux_nodes(head: AuxHeadSpec, num_classes: int) -> list[Node]:
    spec = BlockSpec(head.name, head.channels, head.channels, stride=2, kind="conv-bn")
    pool, linear = f"{head.name}.pool", f"{head.name}.linear"
    return [
        Node(head.name, Block(spec), (head.after,), training_only=True),
        Node(pool, GlobalAvgPool(), (head.name,), training_only=True),
        Node(linear, Linear(head.channels, num_classes), (pool,), AUX_WEIGHT, training_only=True),
    ]


@dataclass(frozen=True, slots=True)
class _Family:
    """A row of the paper's Tables 2 and 3."""

    depths: tuple[int, int, int, int]
    widths: tuple[float, float, float, float]
    groups: int = 1
    se: SqueezeExcitation = "none"
    aux: bool = False


_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
_B1, _B2, _B3 = (2.0, 2.0, 2.0, 4.0), (2.5, 2.5, 2.5, 5.0), (3.0, 3.0, 3.0, 5.0)

_FAMILIES = {
    "RepVGG-A0": _Family(_A, (0.75, 0.75, 0.75, 2.5)),
    "RepVGG-A1": _Family(_A, (1.0, 1.0, 1.0, 2.5)),
    "RepVGG-A2": _Family(_A, (1.5, 1.5, 1.5, 2.75)),
    "RepVGG-B0": _Family(_B, (1.0, 1.0, 1.0, 2.5)),
    "RepVGG-B1": _Family(_B, _B1),
    "RepVGG-B1g2": _Family(_B, _B1, groups=2),
    "RepVGG-B1g4": _Family(_B, _B1, groups=4),
    "RepVGG-B2": _Family(_B, _B2),
    "RepVGG-B2g2": _Family(_B, _B2, groups=2),
    "RepVGG-B2g4": _Family(_B, _B2, groups=4),
    "RepVGG-B3": _Family(_B, _B3),
    "RepVGG-B3g2": _Family(_B, _B3, groups=2),
    "RepVGG-B3g4": _Family(_B, _B3, groups=4),
    "RepVGG-D2se": _Family(_D, _B2, se="before_relu"),
    "RepVGGplus-L2pse": _Family(_D, _B2, se="after_relu", aux=True),
}

NAMES: tuple[str, ...] = tuple(_FAMILIES)

# The official code groups every second layer, counted from stage0 = 0, up to layer 26.
_GROUPED_LAYERS = frozenset(range(2, 27, 2))
_SE_REDUCTION = {"before_relu": 16, "after_relu": 4}


def official_name(name: str) -> str | None:
    """``"RepVGG-A0"`` of ``"repvgg_a0"`` or ``"A0"``; None if no official model is called so."""
    found = {spelling(known): known for known in NAMES} | {
        spelling(known.split("-", 1)[1]): known for known in NAMES
    }
    return found.get(spelling(name))


def spelling(name: str) -> str:
    """What is left of a network's name without case, dashes and timm's name of its weights.

    ``"repvgga0"`` of ``"RepVGG-A0"``, of timm's ``"repvgg_a0"`` and ``"repvgg_a0.rvgg_in1k"``.
    """
    return _TIMM_WEIGHTS.sub("", str(name)).lower().replace("-", "").replace("_", "")


# Only those: a file's suffix is none, so that RepVGG-A0.pth is never a network's name.
_TIMM_WEIGHTS = re.compile(r"\.\w+_in1k$")


def architecture(
    name: str, *, num_classes: int = 1000, in_channels: int = 3, block: str = "repvgg"
) -> Architecture:
    """The official architecture called `name` (``"RepVGG-A0"``; case and prefix may be left out).

    `block` is the kind of all its blocks, a name in `blocks.catalogue.KINDS`.

    Raises
    ------
    CheckpointError
        If no official model has that name.
    """
    official = official_name(name)
    if official is None:
        raise CheckpointError(
            "there is no official model of that name",
            got=repr(name),
            wanted=", ".join(NAMES),
            advice=did_you_mean(name, NAMES),
        )
    family = _FAMILIES[official]
    built = plain_architecture(
        depths=family.depths,
        channels=_channels(family.widths),
        groups=family.groups,
        se=family.se,
        kind=block_kind(block).name,
        num_classes=num_classes,
        in_channels=in_channels,
        name=official,
    )
    return replace(built, aux_heads=_aux_heads(built)) if family.aux else built


def plain_architecture(
    *,
    depths: Sequence[int],
    channels: Sequence[int],
    groups: int = 1,
    se: SqueezeExcitation = "none",
    kind: str = "repvgg",
    num_classes: int,
    in_channels: int = 3,
    name: str = "custom",
) -> Architecture:
    """A RepVGG of any size.

    Parameters
    ----------
    depths : sequence of int
        Blocks in stage 1, 2, ...; stage0 is always one block.
    channels : sequence of int
        Output channels of stage 0, 1, 2, ...: one more entry than `depths`.
    groups : int
        Groups of layers 2, 4, ..., 26, as in the official g2 and g4 models.
    se : {"none", "before_relu", "after_relu"}
        Squeeze-and-excitation in every block, reduced to C/16 (D2se) or C/4 (RepVGGplus).
    kind : str
        Of every block, a name in `blocks.catalogue.KINDS`.

    Raises
    ------
    ShapeError
        If there is no class or channel, or squeeze-and-excitation would have no hidden channel.
    """
    kind_called(kind)
    if se not in get_args(SqueezeExcitation):
        wanted = ", ".join(get_args(SqueezeExcitation))
        raise ShapeError("there is no such place for SE", got=repr(se), wanted=wanted)
    require_counts(num_classes=num_classes, advice=NO_HEAD)
    depths, channels = list(depths), list(channels)
    require_counts(in_channels=in_channels, depths=depths, channels=channels, groups=groups)
    require_equal("plain_architecture", "len(channels)", len(channels), "stages", len(depths) + 1)
    blocks: list[BlockSpec] = []
    for stage, depth in enumerate((1, *depths)):
        for index in range(depth):
            entry = blocks[-1].out_channels if blocks else in_channels
            stride = 2 if index == 0 else 1
            out_channels = channels[stage]
            blocks.append(
                BlockSpec(
                    name=f"stage{stage}.{index}" if stage else "stage0",
                    in_channels=entry,
                    out_channels=out_channels,
                    stride=stride,
                    groups=groups if len(blocks) in _GROUPED_LAYERS else 1,
                    se=se,
                    se_channels=_se_channels(out_channels, se),
                    kind=kind,
                )
            )
    return Architecture(name, tuple(blocks), num_classes)


def _se_channels(channels: int, se: SqueezeExcitation) -> int:
    if se == "none":
        return 0
    reduction = _SE_REDUCTION[se]
    if channels < reduction:
        raise ShapeError(
            f"squeeze-and-excitation {se!r} has C/{reduction} hidden channels, here none",
            got=f"{channels} channels",
            wanted=f"at least {reduction} in every stage",
            advice='widen the stages, or take se="none"',
        )
    return channels // reduction


def _channels(widths: tuple[float, float, float, float]) -> tuple[int, ...]:
    a0, a1, a2, a3 = widths
    stem = min(64, int(64 * a0))
    return stem, int(64 * a0), int(128 * a1), int(256 * a2), int(512 * a3)


def aux_positions(blocks: Sequence[str]) -> dict[str, str]:
    """RepVGGplus hangs its heads after stage 1, stage 2 and the first half of stage 3."""
    stages = {n: [name for name in blocks if name.startswith(f"stage{n}.")] for n in (1, 2, 3)}
    if not all(stages.values()):
        return {}
    middle = stages[3][max(0, len(stages[3]) // 2 - 1)]
    return {
        "stage1_aux": stages[1][-1],
        "stage2_aux": stages[2][-1],
        "stage3_first_aux": middle,
    }


def _aux_heads(arch: Architecture) -> tuple[AuxHeadSpec, ...]:
    ends = aux_positions([block.name for block in arch.blocks])
    return tuple(AuxHeadSpec(n, after, arch.block(after).out_channels) for n, after in ends.items())
