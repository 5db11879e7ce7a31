"""One walk along a network that is no chain, with what a port shows of it.

Each node is computed in float64 from the candidate's *own* inputs, and its output held against a
certified bound of that node's rounding: of blocks and the head `bounds.block`, of what stands
between them `bounds.nodes`. What a candidate leaves out is computed for it, and how far its own
may be from that is added to the bound of what comes after (`bounds.hidden`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import ChannelDropout, Concat
from repvgg_ref.models.graph import INPUT, Node
from repvgg_ref.models.layers import Block, Extent, Flatten, Linear, MaxPool
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.comparison import Comparison, compare, held, misshapen
from repvgg_ref.oracle.bounds.hidden import Kind, hidden_bound, moved_by_block
from repvgg_ref.oracle.bounds.nodes import moved, node_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import wide_pass
from repvgg_ref.oracle.programs.program import layer_output, plain

_MOST_LEFT_OUT = 5  # convolutions between outputs: a stem's, a bottleneck's and its projection
_COPIES = (MaxPool, Flatten, ChannelDropout, Concat)  # give numbers that they are given


class Known(NamedTuple):
    """A node's output.

    Attributes
    ----------
    slack : array or None
        How far the candidate's own may be from it; None where it is its own.
    left_out : tuple of str
        The blocks that were computed for the candidate on the way to it.
    """

    y: Array
    slack: Array | None = None
    left_out: tuple[str, ...] = ()


class Walk:
    """A port's outputs along the nodes of a network.

    Attributes
    ----------
    known : mapping of node name to Known
    comparisons : mapping of node name to Comparison
    inputs : mapping of layer name to array
        The candidate's own, of the compared layers that have a program.
    hidden : list of str
        The blocks that were computed for the candidate and led to something compared.
    """

    def __init__(
        self,
        programs: Programs,
        outputs: Mapping[str, Array],
        x: Array,
        precision: Precision,
        kind: Kind | None = None,
    ) -> None:
        """`kind`: what hidden nodes may err by, if not what is usual of such a network."""
        self.programs, self.model, self.outputs = programs, programs.model, outputs
        self.x, self.precision = np.asarray(x, np.float64), precision
        is_dense = self.model.arch.is_dense
        self.kind: Kind = kind or ("certified" if is_dense else "likely")
        self.most_left_out = 0 if is_dense else _MOST_LEFT_OUT
        self.nodes = {node.name: node for node in self.model.arch.evaluated}
        self.run = wide_pass(self.model)
        self.known: dict[str, Known] = {INPUT: Known(self.x)}
        self.comparisons: dict[str, Comparison] = {}
        self.inputs: dict[str, Array] = {}
        self.hidden: list[str] = []

    def own(self, name: str) -> Array | None:
        """The candidate's output of a node, float64; a linear layer's is a vector."""
        found = self.outputs.get(name)
        if found is None:
            return None
        own = np.asarray(found, np.float64)
        is_vector = isinstance(self.nodes[name].op, Linear) and own.shape[2:] == (1, 1)
        return own[:, :, 0, 0] if is_vector else own

    def given(self, node: Node) -> list[Known] | None:
        """What a node of the candidate got; None if that is not known."""
        found = [self.known[name] for name in node.inputs if name in self.known]
        return found if len(found) == len(node.inputs) else None

    def forward(self, node: Node, xs: list[Array]) -> Array:
        """What a node gives, float64."""
        if isinstance(node.op, Block):
            return layer_output(plain(self.programs[node.name]), xs[0])
        return np.asarray(node.op.forward(node.name, xs, self.run)[0])

    @property
    def wrong(self) -> list[str]:
        """What is beyond its bound, of what was not computed from an own input."""
        others = ((n, each) for n, each in self.comparisons.items() if n not in self.inputs)
        return [name for name, each in others if each.bound is not None and not each.report.ok]

    def along(self, only: Collection[str] | None = None) -> Walk:
        """Compare every node (or those of `only`) whose output is shown and inputs are known."""
        extents: dict[str, Extent] = {INPUT: (self.x.shape[1], self.x.shape[2], self.x.shape[3])}
        for node in self.model.arch.evaluated:
            extents[node.name] = node.op.extent([extents[name] for name in node.inputs])
            inputs, own = self.given(node), self.own(node.name)
            is_asked = only is None or node.name in only
            if own is None:
                if (
                    is_asked
                    and inputs is not None
                    and (found := self._computed(node, inputs)) is not None
                ):
                    self.known[node.name] = found
                continue
            wanted = (len(self.x), *_shape(extents[node.name], own))
            fits = own.shape == wanted
            if is_asked and (compared := self.compared(node, wanted)) is not None:
                self.comparisons[node.name] = compared
            if fits and np.isfinite(own).all():
                self.known[node.name] = Known(own)
        return self

    def compared(self, node: Node, wanted: tuple[int, ...]) -> Comparison | None:
        """A node held to its bound; None if too little is known of what it is given.

        `wanted` is the shape that its output must have.
        """
        name, own, inputs = node.name, self.own(node.name), self.given(node)
        assert own is not None
        shown = {n: each.y for n, each in self.known.items() if each.slack is None}
        if name in self.programs and (x := self.programs.input_of(name, shown)) is not None:
            self.inputs[name] = x
            return compare(self.programs[name], x, own, self.precision)
        if own.shape != wanted:
            return Comparison(misshapen(name, own.shape, wanted), own, own, None)
        if inputs is None:
            return None
        y, bound = self._expected(node, inputs)
        self.hidden += [each for known in inputs for each in known.left_out]
        return Comparison(held(name, y, own, bound), y, own, Bound(bound, bound))

    def _expected(self, node: Node, inputs: list[Known]) -> tuple[Array, Array]:
        """What a node gives for these inputs, and how far a right candidate's may be from it."""
        xs = [each.y for each in inputs]
        slacks = [0 * each.y if each.slack is None else each.slack for each in inputs]
        y = self.forward(node, xs)
        if not isinstance(node.op, Block):
            bound = node_bound(node, xs, self.run, self.precision)
            return y, bound + moved(node, slacks, self.run)
        program = self.programs[node.name]
        bound = hidden_bound(program, xs[0], y, self.precision, self.kind)
        return y, bound + moved_by_block(program, slacks[0], self.kind)

    def _computed(self, node: Node, inputs: list[Known]) -> Known | None:
        """A node for a candidate that left it out; None if that says too little of its own."""
        on_the_way = tuple(dict.fromkeys(name for each in inputs for name in each.left_out))
        is_block = isinstance(node.op, Block)
        if is_block and len(on_the_way) >= self.most_left_out:
            return None
        if isinstance(node.op, _COPIES) and all(each.slack is None for each in inputs):
            return Known(self.forward(node, [each.y for each in inputs]))
        y, bound = self._expected(node, inputs)
        if is_block and self.kind == "likely" and np.median(bound) > np.abs(y).max():
            return None
        return Known(y, bound, (*on_the_way, node.name) if is_block else on_the_way)


def _shape(extent: Extent, own: Array) -> tuple[int, ...]:
    """A node's extent; of what has one pixel, the channels alone where it is given so."""
    return extent[:1] if own.ndim == 2 and extent[1:] == (1, 1) else extent
