"""The library of bugs, one file a family, the likelier first.

A bug of a block goes into one of six families, a bug of pool or linear layer into `head`, of what
stands between blocks into `between` (gates, activations, sums), `residual` (max pools, sums with
their ReLU), `resizing` or `pyramid` (of a network that says a class for every pixel); `bugs_for`
tells which of them a program can have.
"""

from __future__ import annotations

from typing import Any

from repvgg_ref.oracle.bugs import (
    activations,
    batch_norm,
    between,
    geometry,
    head,
    inputs,
    pyramid,
    residual,
    resizing,
    rounding,
    structure,
)
from repvgg_ref.oracle.bugs.base import Bug, Mutant, Site, Variant, library
from repvgg_ref.oracle.programs.between import BetweenProgram
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.node import NodeProgram

LAYER_BUGS: tuple[Bug[BlockProgram], ...] = library(
    structure, activations, batch_norm, geometry, inputs, rounding
)
HEAD_BUGS: tuple[Bug[HeadProgram], ...] = library(head)
BETWEEN_BUGS: tuple[Bug[BetweenProgram], ...] = library(between)
NODE_BUGS: tuple[Bug[NodeProgram], ...] = library(resizing, pyramid, residual)


def bugs_for(program: Any) -> tuple[Bug[Any], ...]:
    """What can be wrong with such a program."""
    if isinstance(program, BetweenProgram):
        return BETWEEN_BUGS
    if isinstance(program, NodeProgram):
        return NODE_BUGS
    return HEAD_BUGS if isinstance(program, HeadProgram) else LAYER_BUGS


__all__ = [
    "BETWEEN_BUGS",
    "HEAD_BUGS",
    "LAYER_BUGS",
    "NODE_BUGS",
    "Bug",
    "Mutant",
    "Site",
    "Variant",
    "bugs_for",
]
