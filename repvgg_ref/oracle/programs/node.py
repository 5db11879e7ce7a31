"""Any operation of a network that is no chain, on the inputs that a port gave it, right or wrong.

Between blocks stand pools, resizings, concatenations and dropout: they have no arrays, so a port
can only get wrong *what* they do, and that is one function of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Extent, Pass
from repvgg_ref.models.network import Model
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.program import Pixels, Workspace

Change = Callable[[list[Array]], Array]


def wide_pass(model: Model) -> Pass:
    """A model's arrays in float64, for what stands between its blocks."""
    params = {name: np.asarray(array, np.float64) for name, array in model.params.items()}
    return Pass(params, REFERENCE, model.eps, model.form)


@dataclass(frozen=True)
class NodeProgram:
    """What one node of a port gives for its inputs; float64.

    Attributes
    ----------
    xs : tuple of arrays, each (N, C, H, W)
        The candidate's own inputs of it, all that the program is ever evaluated on.
    change : callable
        What is computed of them instead of what the node does.
    instead : mapping of str to callable
        What else a port could hand on here: its name and how it is computed.
    """

    node: Node
    xs: tuple[Array, ...]
    run: Pass
    change: Change | None = None
    instead: Mapping[str, Callable[[], Array]] = field(default_factory=dict)

    __repr__ = one_line

    @property
    def name(self) -> str:
        """The node's."""
        return self.node.name

    @property
    def extent(self) -> Extent:
        """Channels, height and width that are right."""
        return self.node.op.extent([(x.shape[1], x.shape[2], x.shape[3]) for x in self.xs])

    @cached_property
    def y(self) -> Array:
        """The output, (N, O, Ho, Wo)."""
        xs = list(self.xs)
        if self.change is not None:
            return self.change(xs)
        return np.asarray(self.node.op.forward(self.name, xs, self.run)[0])

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Height and width of the output on its own inputs; () of vectors."""
        return self.y.shape[2:]

    def evaluate(
        self, x: Array, pixels: Pixels | None = None, workspace: Workspace | None = None
    ) -> Array:
        """The output (N, O, P) on its own inputs, of which `x` is the first."""
        flat = self.y.reshape(*self.y.shape[:2], -1)
        if pixels is None or self.y.ndim == 2:
            return flat
        return flat[:, :, pixels[0] * self.y.shape[3] + pixels[1]]
