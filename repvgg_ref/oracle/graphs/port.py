"""What else a port of a network that is no chain could have computed, and what it then gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.dense import ChannelDropout
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Block
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.comparison import diagnosis_bound
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.graphs.walk import Walk
from repvgg_ref.oracle.programs.activation import log_softmax, sigmoid, softmax
from repvgg_ref.oracle.programs.node import Change, NodeProgram, wide_pass
from repvgg_ref.oracle.programs.program import batch_output, plain

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
_LEAST_ADDED = 1e-3  # of the auxiliary logits: less is what rounding in a right port makes of it
_SCREENED = 32  # output channels that tell whether it is worth computing all


class GraphPort(Walk):
    """A walk, and what else a port's nodes could have computed."""

    def site(self, node: Node) -> Site[Any]:
        """Where bugs of a node are tried: a layer's own, or those of what stands between."""
        own = self.own(node.name)
        if node.name in self.inputs:
            return site_of(self.programs, node.name, self.inputs[node.name], own)
        inputs = self.given(node)
        if not isinstance(node.op, Block) or inputs is None:
            return self.whole(node, own)
        return site_of(self.programs, node.name, inputs[0].y, own)

    def whole(self, node: Node, y_hat: Array | None = None) -> Site[NodeProgram]:
        """A node, block or not, as something whose whole output may be another."""
        xs = tuple(known.y for known in self.given(node) or ())
        change = partial(self.forward, node) if isinstance(node.op, Block) else None
        program = NodeProgram(node, xs, self.run, change, self._instead(node, xs))
        return Site(program, xs[0], y_hat)

    def bound(self, name: str) -> Bound:
        """A node's bound for comparing *other* programs; see `diagnosis_bound`."""
        found = self.comparisons[name]
        assert found.bound is not None
        if name not in self.inputs and not isinstance(self.nodes[name].op, Block):
            # What is 0 by the right windows, and rounds to nothing, need not be by others.
            return Bound(*(np.full_like(each, each.max()) for each in found.bound))
        program, x = self.programs[name], self.site(self.nodes[name]).x
        wide = diagnosis_bound(program, x, found.y, self.precision)
        if name in self.inputs:
            return wide
        return Bound(*(more + each for more, each in zip(wide, found.bound, strict=True)))

    def hidden_before(self, target: Node) -> Iterator[Node]:
        """The nodes whose outputs the candidate left out, and from which `target` is fed."""
        reached, found = set(target.inputs), []
        for node in reversed(self.model.arch.evaluated):
            is_hidden = node.name not in self.outputs and node.name in self.known
            if node.name in reached and is_hidden:
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
                changed[node.name] = np.asarray(own(xs) if own else self.forward(node, xs))
        if (own := changes.get(target.name)) is not None:
            return own(self._given(target, changed))
        return self._at_target(target, changed)

    def _given(self, node: Node, changed: Mapping[str, Array]) -> list[Array]:
        return [changed[n] if n in changed else self.known[n].y for n in node.inputs]

    def _at_target(self, target: Node, changed: Mapping[str, Array]) -> Array | None:
        xs = self._given(target, changed)
        if not isinstance(target.op, Block):
            return self.forward(target, xs)
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
        if not isinstance(place.op, ChannelDropout) or not isinstance(target.op, Block):
            return None
        own, x = self.own(target.name), self.known[place.inputs[0]].y
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
        main = partial(self.forward, node, list(xs))
        others = self.with_auxiliary(node.name, main)
        found = {what: partial(np.asarray, y) for what, y in others.items()}
        if node.name == head.name:
            found |= {what: partial(self._ended, node, xs, end) for what, end in _ENDS.items()}
        return found

    def _ended(self, node: Node, xs: tuple[Array, ...], end: Ending) -> Array:
        """What the last node gives if a port ends in something else than logits."""
        before, after = end
        y = node.op.forward(node.name, [before(xs[0]), *xs[1:]], self.run)[0]
        return np.asarray(after(y))

    def main_logits(self) -> Array:
        """The right logits, of the candidate's own outputs as far along as they are known."""
        head = self.model.arch.head
        xs = [self._computed_on(name, further=True) for name in head.inputs]
        return self.forward(head, xs)

    def with_auxiliary(self, name: str, main: Callable[[], Array]) -> dict[str, Array]:
        """What else the head, or what it resizes, could be: the auxiliary head's, or both added.

        `main` gives what is right. Nothing if the auxiliary head is fed by what is not known.
        """
        auxiliary, own = self._auxiliary, self.own(name)
        if auxiliary is None:
            return {}
        end = auxiliary.name if name == self.model.arch.head.name else auxiliary.inputs[0]
        try:
            given = self._computed_on(end)
        except KeyError:
            return {}
        found = {_AUXILIARY: given}
        if own is not None and own.shape == given.shape and np.isfinite(own).all():
            right = main()
            factor = float((given * (own - right)).sum() / max((given**2).sum(), 1e-300))
            if abs(factor) > _LEAST_ADDED:
                what = f"the main logits plus {factor:.3g} times {_AUXILIARY}"
                found[what] = right + factor * given
        return found

    @property
    def _auxiliary(self) -> Node | None:
        """The auxiliary logits, if they can be computed."""
        nodes = (n for n in self.model.arch.nodes if n.loss_weight and n.training_only)
        return next(nodes, None) if self.model.form == "train" else None

    def _computed_on(self, name: str, *, further: bool = False) -> Array:
        """A node's right output, of the candidate's own features.

        `further`: along any nodes, not only those that exist in training alone.
        """
        run = replace(wide_pass(self.model), dropout=0.0)
        nodes = {node.name: node for node in self.model.arch.nodes}

        def output(at: str) -> Array:
            if at in self.known:
                return self.known[at].y
            node = nodes[at]
            if not (further or node.training_only):
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
