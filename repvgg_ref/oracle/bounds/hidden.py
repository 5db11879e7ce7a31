"""How far a right candidate may be from the reference in a block whose output it does not show.

At most, by the certified bound of any algorithm: which one convolves cannot be seen there, and
Winograd's errs where direct sums do not (a patch of zeros beside others gives 0 in one and a whole
tile's rounding in the other).

Likely by far less, if products are summed as they are. In a sum of n products of any signs,
roundings meet partial sums of the size of ``E = sqrt(sum (w x)^2)`` and of the result y, not of
``sum |w x|``, and are independent; `_LAMBDA` deviations of them are allowed,

    s = lambda (u sqrt(n) (E + |y|) + sqrt(k) u E) + c u (|y| + sum over branches |t z| + |b|)

with k roundings of operands, and c of what is written or scaled as a whole.

What a later layer makes of it hangs on whether errors add up or cancel. At most they add up; likely
those of different channels are independent, and their squares add up. So with ``K`` taps

    largest |W| * s    or, by Cauchy and Schwarz within a channel,    likely sqrt(K (W^2 * s^2))
"""

from __future__ import annotations

from math import prod
from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.block import WINOGRAD, block_bound
from repvgg_ref.oracle.bounds.linear_part import layer_kernels, linear_part
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.winograd import applies
from repvgg_ref.oracle.programs.block import BlockProgram

Kind = Literal["certified", "likely"]

_LAMBDA = 8.0  # no output of any layer is further off
_WHOLE = 8.0  # roundings of a result: its scale, its bias, and what is written
_COARSEST = 6  # F(6 x 6, 3 x 3): larger tiles are in no wide use


def hidden_bound(
    program: BlockProgram, x: Array, y: Array, precision: Precision, kind: Kind
) -> Array:
    """The bound of every output, float64, of the shape of `y`; arguments as of `block_bound`."""
    if kind == "likely":
        return np.stack([_likely(program, image, precision) for image in x]).reshape(y.shape)
    bounds = [block_bound(program, x, y, precision)]
    for algorithm in WINOGRAD if program.size == (3, 3) else ():
        m = int(algorithm[-1])
        if m <= _COARSEST and applies(m, program.stride, program.dilation):
            bounds.append(block_bound(program, x, y, precision, algorithm=algorithm))
    return np.asarray(np.maximum.reduce([bound.certified for bound in bounds]))


def _likely(program: BlockProgram, image: Array, p: Precision) -> Array:
    """The module's first equation: (O, P); next to nothing where ReLU is off on both sides."""
    kernels = layer_kernels(program)
    part, products = linear_part(program, kernels, image[None], 0), kernels.weight[0].size
    size, operands = np.abs(part.value), p.u_input**2 + 2 * p.u_weight**2
    noise = p.u_accumulate * np.sqrt(products) * (part.energy + size)
    noise = noise + np.sqrt(operands) * part.energy
    whole = size + part.bias_magnitude[:, None]
    for branch in part.branches:
        whole = whole + np.abs(branch.scaled)
    bound = _LAMBDA * noise + _WHOLE * p.u_store * whole + p.tiny * (2 + products)
    if program.activation == "relu":
        bound = np.where(part.value + bound > 0, bound, p.tiny)
    return np.asarray(bound)


def moved_by_block(program: BlockProgram, slack: Array, kind: Kind) -> Array:
    """By how much a block's output may move if its input does by `slack`, (N, C, H, W)."""
    how = {name: getattr(program, name) for name in ("stride", "dilation", "groups")}
    how["padding"] = program.pads[0], program.pads[1]
    weight = np.abs(program.fused_kernel().weight)
    if kind == "certified":
        return np.asarray(REFERENCE.conv2d_forward(slack, weight, None, **how)[0])
    squares = REFERENCE.conv2d_forward(slack**2, weight**2, None, **how)[0]
    return np.asarray(np.sqrt(prod(program.size) * squares))
