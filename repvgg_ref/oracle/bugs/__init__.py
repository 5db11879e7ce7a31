"""The library of bugs, one file a family, the likelier first.

A bug of a block goes into one of five families, a bug of pool or linear layer into `head`;
`bugs_for` tells which of the two a program can have.
"""

from __future__ import annotations

from typing import Any

from repvgg_ref.oracle.bugs import batch_norm, geometry, head, inputs, rounding, structure
from repvgg_ref.oracle.bugs.base import Bug, Mutant, Site, Variant, library
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram

LAYER_BUGS: tuple[Bug[BlockProgram], ...] = library(
    structure, batch_norm, geometry, inputs, rounding
)
HEAD_BUGS: tuple[Bug[HeadProgram], ...] = library(head)


def bugs_for(program: Any) -> tuple[Bug[Any], ...]:
    """What can be wrong with such a program."""
    return HEAD_BUGS if isinstance(program, HeadProgram) else LAYER_BUGS


__all__ = ["HEAD_BUGS", "LAYER_BUGS", "Bug", "Mutant", "Site", "Variant", "bugs_for"]
