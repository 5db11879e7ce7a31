"""What stands between the blocks of a network that is no chain: activations, gates, sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.models.gated import Add, Gate, Gelu
from repvgg_ref.ops.gelu import normal_cdf
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams, gate
from repvgg_ref.oracle.programs.program import Pixels, Workspace

BETWEEN = (Gelu, Gate, Add)
"""The operations that have a program here."""


@dataclass(frozen=True)
class BetweenProgram:
    """``output_map(function(x))`` of a whole image, which keeps its height and width; float64.

    Attributes
    ----------
    op : operation
        What it is in the network, right or wrong: its bound and its bugs hang on that.
    function : callable
        (N, C, H, W) -> (N, O, H, W). A sum is given both terms side by side as channels.
    se : SqueezeExcitationParams or None
        A gate's own arrays.
    """

    name: str
    op: Gelu | Gate | Add
    function: Callable[[Array], Array]
    se: SqueezeExcitationParams | None = None

    __repr__ = one_line

    def output_size(self, height: int, width: int) -> tuple[int, ...]:
        """The input's."""
        return height, width

    def evaluate(
        self, x: Array, pixels: Pixels | None = None, workspace: Workspace | None = None
    ) -> Array:
        """The output (N, O, P), float64; all is computed, for a gate needs it all."""
        y = self.function(np.asarray(x, np.float64))
        if pixels is None:
            return y.reshape(*y.shape[:2], -1)
        return np.asarray(y[:, :, pixels[0], pixels[1]])


def gelu_program(name: str) -> BetweenProgram:
    """``x Phi(x)``."""
    return BetweenProgram(name, Gelu(), gelu)


def gate_program(name: str, op: Gate, se: SqueezeExcitationParams) -> BetweenProgram:
    """``x sigmoid(up(relu(down(mean of x))))``."""
    return BetweenProgram(name, op, gated(se), se)


def sum_program(name: str, op: Add) -> BetweenProgram:
    """``a + b`` of two inputs side by side."""
    return BetweenProgram(name, op, lambda x: sum_of(*halves(x)))


def gelu(x: Array) -> Array:
    """``x Phi(x)``, float64."""
    return np.asarray(x * normal_cdf(x))


def gated(
    se: SqueezeExcitationParams, pool: object = (2, 3), kind: str = "sigmoid"
) -> Callable[[Array], Array]:
    """What multiplies each channel by its `factor`."""
    return lambda x: np.asarray(x * factor(se, x, pool, kind))


def factor(
    se: SqueezeExcitationParams, x: Array, pool: object = (2, 3), kind: str = "sigmoid"
) -> Array:
    """`activation.gate`'s factor: (N, C, 1, 1), or (N, C, H, W) where a pool keeps an axis."""
    found = gate(se, x, pool, kind)
    return found[..., None] if found.shape[2] == 1 else found.reshape(x.shape)


def halves(x: Array) -> tuple[Array, Array]:
    """Two terms that stand side by side as channels."""
    middle = x.shape[1] // 2
    return x[:, :middle], x[:, middle:]


def sum_of(a: Array, b: Array) -> Array:
    """Their sum."""
    return np.asarray(a + b)
