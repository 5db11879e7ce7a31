"""Squeeze-and-excitation's factors, and how a right port's may differ from the reference's.

An error of the pooled values or of the first layer reaches a gate through the hidden units alone:
whatever it is, it moves the gates along as many directions as there are units that ReLU lets
through, ``(1 - g) up[:, j]`` each, relative to the gate. Beside that, each gate is rounded by
itself: in the sum of its second layer, and in the sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import likely_gate_error
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams, sigmoid
from repvgg_ref.oracle.programs.block import BlockProgram

_SHUT = 1e-200  # a gate that lets nothing through
_OFF = 2.0**6  # u of its terms: a hidden unit this far below 0 stays off whatever the rounding
_TANH = 0.5  # u: what a sigmoid made of tanh is off by, whatever its size


@dataclass(frozen=True)
class Gates:
    """The gates of N images and O channels.

    Attributes
    ----------
    factor : (N, O) array
        1 for a gate that is shut.
    likely : (N, O) array
        How far a factor may be off, relatively, by the bound of bounds (`likely_gate_error`).
    moves : (N, O, J) array
        What an error of 1 in each of J hidden units makes of the gates, relatively.
    rounding : (N, O) array
        How far each may be off by itself, in u: a deviation.
    """

    factor: Array
    likely: Array
    moves: Array
    rounding: Array

    def of_channels(self, channels: Array) -> Gates:
        """The gates of some channels."""
        return Gates(
            *(a[:, channels] for a in (self.factor, self.likely, self.moves, self.rounding))
        )


def gates_of(program: BlockProgram, x: Array, precision: Precision) -> Gates:
    """The gates of a right block for its input `x` (N, C, H, W)."""
    assert program.se is not None
    first = program.activation.startswith("se")
    before = replace(program, se=None, activation="none" if first else "relu")
    found = [_of_image(program.se, before.evaluate(image)[0], precision.unit)
             for image in np.split(x, len(x))]  # fmt: skip
    factor, moves, rounding = (np.stack(each) for each in zip(*found, strict=True))
    return Gates(
        np.where(factor > _SHUT, factor, 1.0),
        likely_gate_error(program, x, precision),
        moves,
        rounding,
    )


def _of_image(se: SqueezeExcitationParams, z: Array, unit: float) -> tuple[Array, Array, Array]:
    """Factor (O,), moves (O, J) and rounding (O,) for what is gated, z (O, P)."""
    pooled = z.mean(axis=1)
    hidden = se.down_weight @ pooled + se.down_bias
    terms = np.abs(se.down_weight) @ np.abs(z).mean(axis=1) + np.abs(se.down_bias)
    on = hidden > -_OFF * unit * terms
    hidden = np.maximum(hidden, 0)
    logit = se.up_weight @ hidden + se.up_bias
    factor, closed = sigmoid(logit), sigmoid(-logit)
    sums = se.up_weight**2 @ hidden**2 + se.up_bias**2 + logit**2
    with np.errstate(divide="ignore"):
        rounding = np.sqrt(closed**2 * sums + 1 + (_TANH / np.maximum(factor, 1e-30)) ** 2)
    return factor, np.where(on, closed[:, None] * se.up_weight, 0.0), rounding
