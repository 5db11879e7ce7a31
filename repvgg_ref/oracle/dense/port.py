"""What a port of a network that is no chain shows: its own outputs, and what follows from them.

Each node is computed in float64 from the candidate's *own* inputs of it. What a candidate leaves
out between blocks is computed for it, and how far its own may be from that is kept beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.dense import ChannelDropout, Concat
from repvgg_ref.models.graph import INPUT, Node
from repvgg_ref.models.layers import Block, Pass
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.comparison import compare, diagnosis_bound, held
from repvgg_ref.oracle.bounds.nodes import moved, node_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.programs.activation import log_softmax, sigmoid, softmax
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import Change, NodeProgram, wide_pass
from repvgg_ref.oracle.programs.program import batch_output, plain
from repvgg_ref.oracle.report import LayerReport

Function = Callable[[Array], Array]
Ending = tuple[Function, Function]  # before the last resizing, and after it


def _as_it_is(y: Array) -> Array:
    return y


_ENDS: Mapping[str, Ending] = {
    "probabilities, not logits": (_as_it_is, softmax),
    "log-probabilities, not logits": (_as_it_is, log_softmax),
    "probabilities, resized, not logits": (softmax, _as_it_is),
    "sigmoids, not logits": (_as_it_is, sigmoid),
}
_AUXILIARY = "the auxiliary head's output"
_SCREENED = 32  # output channels that tell whether it is worth computing all


class Known(NamedTuple):
    """A node's output and how far the candidate's own may be from it: None where it is its own."""

    y: Array
    slack: Array | None


class Judged(NamedTuple):
    """A node's report; what it should give and its bound, None where sizes differ."""

    node: Node
    report: LayerReport
    y: Array | None = None
    bound: Bound | None = None


@dataclass
class DensePort:
    """A port's outputs along the nodes of a network, `known` filled in as they are walked.

    Attributes
    ----------
    outputs : mapping
        The candidate's own, NCHW by the node's name.
    x : array, shape (N, C, H, W)
    """

    model: Model
    outputs: Mapping[str, Array]
    x: Array
    precision: Precision
    known: dict[str, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known[INPUT] = Known(np.asarray(self.x, np.float64), None)
        self.programs = Programs(self.model)

    @cached_property
    def run(self) -> Pass:
        """The fused network in float64."""
        deploy = fuse(self.model) if self.model.form == "train" else self.model
        return wide_pass(deploy)

    def own(self, name: str) -> Array | None:
        """The candidate's output of a node, float64."""
        found = self.outputs.get(name)
        return None if found is None else np.asarray(found, np.float64)

    def inputs(self, node: Node) -> list[Known] | None:
        """What a node of the candidate got, as far as it is known."""
        found = [self.known.get(name) for name in node.inputs]
        inputs = [each for each in found if each is not None]
        return inputs if len(inputs) == len(found) else None

    def site(self, node: Node, y_hat: Array | None) -> Site[Any]:
        """Where bugs of a node are tried: a block's own, or those of what stands between."""
        if not isinstance(node.op, Block):
            return self.whole(node, y_hat)
        inputs = self.inputs(node)
        assert inputs is not None
        return site_of(self.programs, node.name, inputs[0].y, y_hat)

    def whole(self, node: Node, y_hat: Array | None = None) -> Site[NodeProgram]:
        """A node, block or not, as something whose whole output may be another."""
        xs = tuple(known.y for known in self.inputs(node) or ())
        program = NodeProgram(node, xs, self.run, instead=self._instead(node, xs))
        return Site(program, xs[0], y_hat)

    def computed(self, node: Node, inputs: list[Known]) -> Known:
        """What a node between blocks gives, and the bound of a port's error in it."""
        xs = [each.y for each in inputs]
        y = node.op.forward(node.name, xs, self.run)[0]
        slacks = [0 * each.y if each.slack is None else each.slack for each in inputs]
        bound = node_bound(node, xs, self.run, self.precision) + moved(node, slacks, self.run)
        return Known(y, bound)

    def left_out(self, node: Node, inputs: list[Known]) -> Known:
        """A node between blocks that the candidate does not show; a copy is a copy everywhere."""
        found = self.computed(node, inputs)
        copies = isinstance(node.op, ChannelDropout | Concat)
        is_own = copies and all(each.slack is None for each in inputs)
        return Known(found.y, None) if is_own else found

    def judged(self, node: Node) -> Judged:
        """A node whose inputs and output are known, held to its bound."""
        inputs, own = self.inputs(node), self.own(node.name)
        assert inputs is not None
        assert own is not None
        if not isinstance(node.op, Block):
            y, slack = self.computed(node, inputs)
            assert slack is not None
            return Judged(node, held(node.name, y, own, slack), y, Bound(slack, slack))
        program, x, slack = self.programs[node.name], *inputs[0]
        found = compare(program, x, own, self.precision)
        if found.bound is None:
            return Judged(node, found.report)
        if slack is None:
            return Judged(node, found.report, found.y, found.bound)
        more = self._moved(node.op.spec, slack)
        bound = Bound(found.bound.certified + more, found.bound.likely + more)
        report = held(node.name, found.y, own, bound.certified)
        return Judged(node, report, found.y, bound)

    def _moved(self, spec: BlockSpec, slack: Array) -> Array:
        """By how much a block's output may move if its input does by `slack`."""
        weight = np.abs(self.run.params[f"{spec.name}.fused.weight"])
        conv = fused_conv(spec)
        how = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        return np.asarray(
            REFERENCE.conv2d_forward(slack, weight, None, groups=conv.groups, **how)[0]
        )

    def diagnosable(self, judged: Judged) -> Bound:
        """Its bound for comparing *other* programs; see `diagnosis_bound`."""
        assert judged.bound is not None
        assert judged.y is not None
        if not isinstance(judged.node.op, Block):
            # What is 0 by the right windows, and rounds to nothing, need not be by others.
            return Bound(*(np.full_like(each, each.max()) for each in judged.bound))
        name, inputs = judged.node.name, self.inputs(judged.node)
        assert inputs is not None
        wide = diagnosis_bound(self.programs[name], inputs[0].y, judged.y, self.precision)
        more = judged.bound.certified
        return Bound(wide.certified + more, wide.likely + judged.bound.likely)

    def hidden_before(self, target: Node) -> Iterator[Node]:
        """The nodes whose outputs the candidate left out, and from which `target` is fed."""
        reached, found = set(target.inputs), []
        for node in reversed(self.model.arch.evaluated):
            if node.name in reached and node.name not in self.outputs and node.name in self.known:
                found.append(node)
                reached |= set(node.inputs)
        yield from reversed(found)

    def rerouted(self, changes: Mapping[str, Change], target: Node) -> Array | None:
        """What `target` gives if it, or nodes before it that are left out, compute something else.

        None if it cannot be told.
        """
        changed: dict[str, Array] = {}
        between = {node.name for node in self.hidden_before(target)}
        for node in self.model.arch.evaluated:
            is_fed = not changed.keys().isdisjoint(node.inputs)
            if node.name in between and (node.name in changes or is_fed):
                xs = self._given(node, changed)
                own = changes.get(node.name)
                y = own(xs) if own else node.op.forward(node.name, xs, self.run)[0]
                changed[node.name] = np.asarray(y)
        if (own := changes.get(target.name)) is not None:
            return own(self._given(target, changed))
        return self._at_target(target, changed)

    def _given(self, node: Node, changed: Mapping[str, Array]) -> list[Array]:
        return [changed[n] if n in changed else self.known[n].y for n in node.inputs]

    def _at_target(self, target: Node, changed: Mapping[str, Array]) -> Array | None:
        xs = self._given(target, changed)
        if not isinstance(target.op, Block):
            return np.asarray(target.op.forward(target.name, xs, self.run)[0])
        program, own = plain(self.programs[target.name]), self.own(target.name)
        if xs[0].shape[1] != target.op.spec.in_channels:
            return None
        is_plain = program.se is None and program.groups == 1
        if own is not None and is_plain and len(program.fused.weight) > 2 * _SCREENED:
            few = FusedConv(*(part[:_SCREENED] for part in program.fused))
            if _is_far(batch_output(replace(program, fused=few), xs[0]), own[:, :_SCREENED]):
                return None
        return batch_output(program, xs[0])

    def masked(self, place: Node, target: Node) -> Array | None:
        """A dropout's likely output, read off the output of the 1x1 convolution behind it."""
        own, x = self.own(target.name), self.known[place.inputs[0]].y
        if not isinstance(place.op, ChannelDropout) or not isinstance(target.op, Block):
            return None
        kernel = plain(self.programs[target.name]).fused
        spec = target.op.spec
        if (
            own is None
            or spec.kernel != 1
            or spec.activation != "none"
            or own.shape[2:] != x.shape[2:]
        ):
            return None
        weight = kernel.weight[:, :, 0, 0]
        y = (own - kernel.bias[:, None, None]).reshape(*own.shape[:2], -1)
        flat = x.reshape(*x.shape[:2], -1)
        factors = [_factors(weight, f, each) for f, each in zip(flat, y, strict=True)]
        return np.asarray(np.stack(factors)[:, :, None, None] * x)

    def _instead(self, node: Node, xs: tuple[Array, ...]) -> Mapping[str, Callable[[], Array]]:
        """What else than the logits a port could give."""
        head = self.model.arch.head
        if node.name not in (head.name, *head.inputs):
            return {}
        found: dict[str, Callable[[], Array]] = {}
        auxiliary = self._auxiliary
        if auxiliary is not None:
            end = auxiliary.name if node.name == head.name else auxiliary.inputs[0]
            with contextlib.suppress(KeyError):  # what it is fed by may not be known
                given = self._trained_only(end)
                found[_AUXILIARY] = lambda: given
        if node.name == head.name:
            found |= {what: partial(self._ended, node, xs, end) for what, end in _ENDS.items()}
        return found

    def _ended(self, node: Node, xs: tuple[Array, ...], end: Ending) -> Array:
        """What the last node gives if a port ends in something else than logits."""
        before, after = end
        y = node.op.forward(node.name, [before(xs[0]), *xs[1:]], self.run)[0]
        return np.asarray(after(y))

    def without_main(self) -> dict[str, Array]:
        """What could be given for the logits without the main head."""
        auxiliary = self._auxiliary
        if auxiliary is None:
            return {}
        try:
            return {_AUXILIARY: self._trained_only(auxiliary.name)}
        except KeyError:  # what it is fed by is not known
            return {}

    @property
    def _auxiliary(self) -> Node | None:
        """The auxiliary logits, if they can be computed."""
        nodes = (n for n in self.model.arch.nodes if n.loss_weight and n.training_only)
        return next(nodes, None) if self.model.form == "train" else None

    def _trained_only(self, name: str) -> Array:
        """The output of a node that exists in training only, on the candidate's own features."""
        run = replace(wide_pass(self.model), dropout=0.0)
        nodes = {node.name: node for node in self.model.arch.nodes}

        def output(at: str) -> Array:
            if at in self.known:
                return self.known[at].y
            node = nodes[at]
            if not node.training_only:
                raise KeyError(at)
            return np.asarray(node.op.forward(at, [output(n) for n in node.inputs], run)[0])

        return output(name)


def _is_far(seen: Array, own: Array) -> bool:
    """Whether a prediction is no explanation of what was seen."""
    if seen.shape != own.shape:
        return False  # of another size: judged by that
    size = np.abs(own).max(initial=0.0)
    return not bool(np.abs(seen - own).max(initial=0.0) <= 1e-2 * size)


def _factors(weight: Array, x: Array, y: Array) -> Array:
    """The least squares m of ``y (O, P) = weight (O, C) @ (m * x) (C, P)``."""
    both = (weight.T @ weight) * (x @ x.T)  # (C, C)
    seen = ((weight.T @ y) * x).sum(axis=1)  # (C,)
    return np.asarray(np.linalg.lstsq(both, seen, rcond=1e-10)[0])
