"""How far a right candidate may be from the reference in a block whose output it does not show.

By which algorithm it convolves cannot be seen there, and Winograd's errs where direct sums do not:
a patch of zeros beside others gives 0 in one and a whole tile's rounding in the other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.block import WINOGRAD, block_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.winograd import applies
from repvgg_ref.oracle.programs.block import BlockProgram

Allowed = Literal["likely", "certified"]
_COARSEST = 6  # F(6 x 6, 3 x 3): larger tiles are in no wide use


def hidden_bound(
    program: BlockProgram,
    x: Array,
    y: Array,
    precision: Precision,
    winograd: Allowed | None = None,
) -> Array:
    """The bound of every output, float64, of the shape of `y`; see `block_bound`.

    Parameters
    ----------
    winograd : {"likely", "certified"}, optional
        Which of its bounds Winograd's algorithm may err by, whatever its tiles; default: direct
        sums alone are allowed, by their certified bound.
    """
    bound = block_bound(program, x, y, precision).certified
    for algorithm in WINOGRAD if winograd and program.size == (3, 3) else ():
        m = int(algorithm[-1])
        if m <= _COARSEST and applies(m, program.stride, program.dilation):
            other = block_bound(program, x, y, precision, algorithm=algorithm)
            bound = np.maximum(bound, getattr(other, winograd))
    return bound


def moved_by_block(program: BlockProgram, slack: Array) -> Array:
    """By how much a block's output may move if its input does by `slack`."""
    how = {name: getattr(program, name) for name in ("stride", "dilation", "groups")}
    weight = np.abs(program.fused_kernel().weight)
    padding = program.pads[0], program.pads[1]
    y = REFERENCE.conv2d_forward(slack, weight, None, padding=padding, **how)[0]
    return np.asarray(y)
