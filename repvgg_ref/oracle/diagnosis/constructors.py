"""Ways to spoil a layer that are in no list of bugs: what was done to it besides, in general.

A *constructor* has numbers that the candidate's own outputs give; a map of the input or of the
kernel (`Around`) has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.programs.block import BlockProgram

# What the other cause is, in words; those with fewer free numbers come first.
CONSTRUCTORS = {
    "part": "at the other outputs, anything at all",
    "scaled": "all is scaled by one factor in front of the activation",
    "gated": "the gate of each channel and image is another",
    "weights": "all products are scaled by one factor",
    "bias": "the bias is scaled by one factor",
    "shifted": "a constant is added in front of the activation",
    "common": "products and bias are scaled and shifted, by the same numbers in all channels",
    "moved": "output channels are exchanged",
    "affine": "each channel is scaled and shifted",
    "moved affine": "output channels are exchanged, and each is scaled and shifted",
    "function": "the activation is another function",
}
MIXED = "each output is mixed with its eight neighbours, alike everywhere"
MUCH_IS_FREE = {"moved affine", "function"}
HIDES_A_BUG = {"gated", "common", "affine"} | MUCH_IS_FREE  # of the bias or the scale, say
SCALES = {"scaled", "gated", "weights", "common", "affine", "moved affine"}
AS_IT_IS = {"part", "moved"}  # without numbers: the outputs themselves, where they stand


@dataclass(frozen=True)
class Around:
    """What is done to the layer besides: a map of its input or of its kernel, and its words."""

    says: str
    change: Callable[[BlockProgram], BlockProgram]


def _on_input(says: str, change: Callable[[Array], Array]) -> Around:
    return Around(says, lambda program: program.with_input(change))


def _on_kernel(says: str, change: Callable[[Array], Array]) -> Around:
    return Around(
        says, lambda p: p.with_kernel(lambda kernel: FusedConv(change(kernel.weight), kernel.bias))
    )


def _rolled(axis: int, by: int) -> Callable[[Array], Array]:
    return lambda a: np.roll(a, by, axis=axis)


NOTHING = Around("", lambda program: program)
AROUND: tuple[Around, ...] = (
    _on_input("the input turned by 180 degrees", lambda x: x[:, :, ::-1, ::-1]),
    _on_input("the input mirrored from left to right", lambda x: x[:, :, :, ::-1]),
    _on_input("the input mirrored from top to bottom", lambda x: x[:, :, ::-1]),
    _on_input("the input without its mean", lambda x: x - x.mean(axis=(1, 2, 3), keepdims=True)),
    *(
        _on_input(f"the input rolled by {by:+d} along its {what}", _rolled(axis, by))
        for axis, what in ((1, "channels"), (2, "rows"), (3, "columns"))
        for by in (1, -1)
    ),
    *(
        _on_kernel(f"the kernel rolled by {by:+d} along its {what}", _rolled(axis, by))
        for axis, what in ((2, "rows"), (3, "columns"))
        for by in (1, -1)
    ),
)
