"""Strides and dilations of a network's blocks: what no file of arrays can say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.graph import Graph, Network
from repvgg_ref.models.layers import Block

_MOST = 64  # a larger step is a slip, and padding of that size would fill the memory


@dataclass(frozen=True)
class Geometry:
    """Strides and dilations by block name, of all blocks or of some."""

    strides: Mapping[str, int] = field(default_factory=dict)
    dilations: Mapping[str, int] = field(default_factory=dict)

    def __or__(self, other: Geometry) -> Geometry:
        """Both; where they differ, `other`."""
        strides = {**self.strides, **other.strides}
        return Geometry(strides, {**self.dilations, **other.dilations})

    def overruled_by(self, said: Geometry, who: str = "the file's metadata") -> list[str]:
        """Where `said` says otherwise than `who` said this, a line each."""
        pairs = (
            ("stride", self.strides, said.strides),
            ("dilation", self.dilations, said.dilations),
        )
        return [
            f"{name}: {who} says {what} {own[name]}; {step} is taken, as you say"
            for what, own, others in pairs
            for name, step in others.items()
            if own.get(name, step) != step
        ]

    @property
    def says(self) -> str:
        """``stride 1 in stage0; dilation 2 in stage4.1, stage4.2``; empty if nothing is said."""
        groups: dict[str, list[str]] = {}
        for what in ("strides", "dilations"):
            for name, step in getattr(self, what).items():
                groups.setdefault(f"{what[:-1]} {step}", []).append(name)
        return "; ".join(f"{step} in {', '.join(names)}" for step, names in groups.items())

    def of(self, spec: BlockSpec) -> BlockSpec:
        """The block with what is said of it."""
        return replace(
            spec,
            stride=self.strides.get(spec.name, spec.stride),
            dilation=self.dilations.get(spec.name, spec.dilation),
        )

    def require_blocks(self, names: Iterable[str]) -> None:
        """Refuse what is said of blocks other than `names`, or is no stride or dilation.

        Raises
        ------
        CheckpointError
        """
        known = dict.fromkeys(names)
        for what, numbers in (("stride", self.strides), ("dilation", self.dilations)):
            for name, number in numbers.items():
                if name not in known:
                    raise CheckpointError(
                        f"there is no block to give a {what}",
                        got=repr(name),
                        wanted=", ".join(known),
                    )
                if type(number) is not int or not 1 <= number <= _MOST:
                    raise CheckpointError(
                        f"{name} cannot have this {what}",
                        got=repr(number),
                        wanted=f"a whole number from 1 to {_MOST}",
                    )


def said_geometry(
    strides: Mapping[str, int] | None, dilations: Mapping[str, int] | None
) -> Geometry:
    """What a caller says, with integers of any kind as `int`.

    Raises
    ------
    CheckpointError
        If it is no mapping of block names to whole numbers.
    """
    return Geometry(_whole("strides", strides), _whole("dilations", dilations))


def _whole(what: str, said: object) -> dict[str, int]:
    if said is None:
        return {}
    if not isinstance(said, Mapping) or not all(isinstance(name, str) for name in said):
        raise CheckpointError(
            f"{what} are said by block", got=repr(said)[:60], wanted='{"stage4.0": 1}'
        )
    return {
        name: int(step) if isinstance(step, np.integer) else step for name, step in said.items()
    }


def unusual(network: Network) -> Geometry:
    """What of a network is not as official ones have it: 2 in every stage's first block, else 1.

    Of a graph whose blocks are in no such stages only dilations are.
    """
    known = geometry_of(network)
    strides = {} if isinstance(network, Graph) else known.strides
    return Geometry(
        {n: s for n, s in strides.items() if s != usual_stride(n)},
        {n: d for n, d in known.dilations.items() if d != 1},
    )


def usual_stride(name: str) -> int:
    """That of the official networks: 2 in the first block of every stage."""
    return 2 if name == "stage0" or name.endswith(".0") else 1


def geometry_of(network: Network) -> Geometry:
    """The strides and dilations of all blocks."""
    return Geometry(
        {spec.name: spec.stride for spec in network.blocks},
        {spec.name: spec.dilation for spec in network.blocks},
    )


def with_geometry(network: Network, said: Geometry) -> Network:
    """`network` with other strides and dilations; no block gains an identity branch by it.

    Raises
    ------
    CheckpointError
        If it has no such blocks.
    """
    said.require_blocks(spec.name for spec in network.blocks)
    if isinstance(network, Architecture):
        return replace(network, blocks=tuple(_changed(spec, said) for spec in network.blocks))
    assert isinstance(network, Graph)
    nodes = (
        replace(node, op=Block(_changed(node.op.spec, said)))
        if isinstance(node.op, Block)
        else node
        for node in network.nodes
    )
    return replace(network, nodes=tuple(nodes))


def _changed(spec: BlockSpec, said: Geometry) -> BlockSpec:
    other = said.of(spec)
    gains = other.can_add_input and not spec.can_add_input
    return replace(other, adds_input=False) if gains else other
