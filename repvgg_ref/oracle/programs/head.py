"""A linear layer as somebody's port computes it: the last one, behind a pool, or a hidden one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.oracle.programs.program import Pixels, Workspace


class HeadNorm(NamedTuple):
    """A batch norm of features before the linear layer: its vectors, and that layer's own arrays.

    All float64: (C,) four times, (classes, C) and (classes,).
    """

    gamma: Array
    beta: Array
    mean: Array
    var: Array
    eps: float
    weight: Array
    bias: Array

    @property
    def scale(self) -> Array:
        """``gamma / sqrt(var + eps)``."""
        return np.asarray(self.gamma / np.sqrt(self.var + self.eps))

    def folded(self) -> tuple[Array, Array]:
        """The one matrix and the one bias that equal both."""
        moved = self.beta - self.scale * self.mean
        return np.asarray(self.weight * self.scale), np.asarray(self.bias + self.weight @ moved)


@dataclass(frozen=True)
class HeadProgram:
    """``y = output_map(weight @ pool(input_map(x)) + bias)``, with a ReLU if `relu`; float64.

    Features that no pool made are images of one pixel: whatever the pool, they stay what they are.
    `pool` is "mean", "max", "sum" or "corner" (the first pixel). `norm` is the batch norm that
    `weight` and `bias` have taken in already, if there is one. `flattened` is how many channels the
    map had whose pixels are the features; 0 if they are no map's.
    """

    weight: Array
    bias: Array
    pool: str = "mean"
    input_map: Callable[[Array], Array] | None = None
    output_map: Callable[[Array], Array] | None = None
    name: str = "linear"
    norm: HeadNorm | None = None
    relu: bool = False
    flattened: int = 0

    __repr__ = one_line

    def output_size(self, height: int, width: int) -> tuple[int, ...]:
        """What a linear layer gives has neither height nor width."""
        return ()

    def evaluate(
        self, x: Array, pixels: Pixels | None = None, workspace: Workspace | None = None
    ) -> Array:
        """The outputs (N, O, 1) for an input (N, C, H, W), in float64."""
        x = np.asarray(x, np.float64)
        if self.input_map is not None:
            x = self.input_map(x)
        y = POOLS[self.pool](x) @ self.weight.T + self.bias  # (N, O) = (N, C) @ (C, O)
        if self.relu:
            y = np.maximum(y, 0)
        return (y if self.output_map is None else self.output_map(y))[:, :, None]


POOLS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x.mean(axis=(2, 3)),
    "max": lambda x: x.max(axis=(2, 3)),
    "sum": lambda x: x.sum(axis=(2, 3)),
    "corner": lambda x: x[:, :, 0, 0],
}
