"""The last layer as somebody's port computes it: global average pool, then linear."""

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
    """``logits = output_map(weight @ pool(input_map(x)) + bias)``; float64.

    `pool` is "mean", "max", "sum" or "corner" (the first pixel). `norm` is the batch norm that
    `weight` and `bias` have taken in already, if there is one.
    """

    weight: Array
    bias: Array
    pool: str = "mean"
    input_map: Callable[[Array], Array] | None = None
    output_map: Callable[[Array], Array] | None = None
    name: str = "linear"
    norm: HeadNorm | None = None

    __repr__ = one_line

    def output_size(self, height: int, width: int) -> tuple[int, ...]:
        """Logits have neither height nor width."""
        return ()

    def evaluate(
        self, x: Array, pixels: Pixels | None = None, workspace: Workspace | None = None
    ) -> Array:
        """Logits (N, classes, 1) from the last block's output (N, C, H, W), in float64."""
        x = np.asarray(x, np.float64)
        if self.input_map is not None:
            x = self.input_map(x)
        logits = POOLS[self.pool](x) @ self.weight.T + self.bias  # (N, K) = (N, C) @ (C, K)
        return (logits if self.output_map is None else self.output_map(logits))[:, :, None]


POOLS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x.mean(axis=(2, 3)),
    "max": lambda x: x.max(axis=(2, 3)),
    "sum": lambda x: x.sum(axis=(2, 3)),
    "corner": lambda x: x[:, :, 0, 0],
}
