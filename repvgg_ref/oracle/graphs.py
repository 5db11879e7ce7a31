"""Networks that are no chain, judged layer by layer, each by itself.

As for chains, each layer is computed in float64 from the candidate's *own* inputs, and its output
held against a certified bound of that layer's rounding: of blocks and the head `bounds.block`, of
what stands between them `bounds.nodes`. What a candidate leaves out (pools, the convolutions
inside a residual block) is computed for it, and how far its own likely is from that is added to
the bound of what comes after (`bounds.hidden`).

Layers whose own input is known are then estimated as those of chains are: arithmetic, algorithms,
and what rounding does not explain (`diagnosis.explain`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT, Node
from repvgg_ref.models.layers import Block, Extent, Flatten, MaxPool
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.comparison import Comparison, compare, held, misshapen
from repvgg_ref.oracle.bounds.hidden import Kind, hidden_bound, moved_by_block
from repvgg_ref.oracle.bounds.nodes import moved, node_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import NODE_BUGS, Mutant, Site
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.diagnosis.explain import Case, explain
from repvgg_ref.oracle.diagnosis.incomparable import not_finite, wrong_shape
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import NodeProgram, wide_pass
from repvgg_ref.oracle.programs.program import layer_output, plain
from repvgg_ref.oracle.report import Finding, Report

_MOST_LEFT_OUT = 5  # convolutions between outputs: a stem's, a bottleneck's and its projection
_ROOM = 4  # of another function's rounding, in bounds of the right one
_ALIKE = 1e-3  # relative: of an output of another size
_COPIES = (MaxPool, Flatten)  # give numbers that they are given


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


class _Judged(NamedTuple):
    """A node as it was compared."""

    node: Node
    xs: list[Array]


class _Walk:
    """One walk along a network with a candidate's outputs.

    Attributes
    ----------
    comparisons : mapping of layer name to Comparison
    inputs : mapping of layer name to array
        The candidate's own, of the layers that have a program.
    others : mapping of layer name to _Judged
        The other layers that could be compared.
    hidden : list of str
        The blocks that were computed for the candidate and led to something compared.
    """

    def __init__(self, programs: Programs, precision: Precision, kind: Kind = "likely") -> None:
        """`kind`: what hidden layers may err by; see `bounds.hidden`."""
        self.programs, self.precision, self.kind = programs, precision, kind
        self.run = wide_pass(programs.model)
        self.comparisons: dict[str, Comparison] = {}
        self.inputs: dict[str, Array] = {}
        self.others: dict[str, _Judged] = {}
        self.hidden: list[str] = []

    @property
    def wrong(self) -> list[str]:
        """What is beyond its bound, of what was not computed from an own input."""
        found = ((name, self.comparisons[name]) for name in self.others)
        return [name for name, each in found if each.bound is not None and not each.report.ok]

    def along(self, outputs: Mapping[str, Array], x: Array) -> _Walk:
        """Compare what is known of a candidate's outputs for the images `x`."""
        known: dict[str, Known] = {INPUT: Known(np.asarray(x, np.float64))}
        extents: dict[str, Extent] = {INPUT: (x.shape[1], x.shape[2], x.shape[3])}
        for node in self.programs.model.arch.evaluated:
            inputs = [known[name] for name in node.inputs if name in known]
            own = outputs.get(node.name)
            own = None if own is None else np.asarray(own, np.float64)
            extents[node.name] = node.op.extent([extents[name] for name in node.inputs])
            if own is None:
                if len(inputs) == len(node.inputs) and (found := self._computed(node, inputs)):
                    known[node.name] = found
                continue
            fits = own.shape == (wanted := (len(x), *_shape(extents[node.name], own)))
            given = self.programs.input_of(node.name, _own_arrays(known))
            if node.name in self.programs and given is not None:
                self.inputs[node.name] = given
                found_of = compare(self.programs[node.name], given, own, self.precision)
                self.comparisons[node.name] = found_of
            elif not fits:
                report = misshapen(node.name, own.shape, wanted)
                self.comparisons[node.name] = Comparison(report, own, own, None)
                if len(inputs) == len(node.inputs):
                    self.others[node.name] = _Judged(node, [each.y for each in inputs])
            elif len(inputs) == len(node.inputs):
                self._compare(node, inputs, own)
            if fits and np.isfinite(own).all():
                known[node.name] = Known(own)
        return self

    def _computed(self, node: Node, inputs: list[Known]) -> Known | None:
        """A node for a candidate that left it out; None if that says too little of its own."""
        on_the_way = tuple(dict.fromkeys(name for each in inputs for name in each.left_out))
        if not isinstance(node.op, Block):
            xs = [each.y for each in inputs]
            y = node.op.forward(node.name, xs, self.run)[0]
            if isinstance(node.op, _COPIES) and inputs[0].slack is None:
                return Known(y)
            bound = node_bound(node, xs, self.run, self.precision)
            return Known(y, bound + self._slack(node, inputs), on_the_way)
        if len(on_the_way) >= _MOST_LEFT_OUT:
            return None
        program, x = self.programs[node.name], inputs[0].y
        y = layer_output(plain(program), x)
        bound = hidden_bound(program, x, y, self.precision, self.kind) + self._slack(node, inputs)
        if self.kind == "likely" and np.median(bound) > np.abs(y).max():
            return None
        return Known(y, bound, (*on_the_way, node.name))

    def _compare(self, node: Node, inputs: list[Known], own: Array) -> None:
        """Hold an output to what is between blocks, or to what was computed for the candidate."""
        xs = [each.y for each in inputs]
        if isinstance(node.op, Block):
            program = self.programs[node.name]
            y = layer_output(plain(program), xs[0])
            bound = hidden_bound(program, xs[0], y, self.precision, self.kind)
        else:
            y = node.op.forward(node.name, xs, self.run)[0]
            bound = node_bound(node, xs, self.run, self.precision)
        bound = bound + self._slack(node, inputs)
        report = held(node.name, y, own, bound)
        self.comparisons[node.name] = Comparison(report, y, own, Bound(bound, bound))
        self.others[node.name] = _Judged(node, xs)
        self.hidden += [name for each in inputs for name in each.left_out]

    def _slack(self, node: Node, inputs: list[Known]) -> Array:
        """By how much the node's output may differ since its inputs may."""
        slacks = [0 * each.y if each.slack is None else each.slack for each in inputs]
        if isinstance(node.op, Block):
            return moved_by_block(self.programs[node.name], slacks[0], self.kind)
        return moved(node, slacks, self.run)


def _own_arrays(known: Mapping[str, Known]) -> dict[str, Array]:
    """What is the candidate's own."""
    return {name: each.y for name, each in known.items() if each.slack is None}


@dataclass(frozen=True)
class _GraphCase(Case):
    """A `Case` in which some layers have no program, or no input of the candidate's own."""

    thoroughly: ClassVar[bool] = False
    walk: _Walk = field(kw_only=True)
    certain: Mapping[str, bool] = field(kw_only=True)  # layer -> within the largest error

    @property
    def with_evidence(self) -> list[str]:
        """The layers on which bugs of layers can be tried."""
        return [name for name in self.comparisons if name in self.walk.inputs]

    def input_of(self, name: str) -> Array:
        """The candidate's own input of a layer."""
        return self.walk.inputs[name]

    def excuse(self, name: str) -> bool:
        """Only what was computed from an own input shows an algorithm."""
        return name in self.walk.inputs and super().excuse(name)

    def findings(self, name: str, together: Collection[str] = ()) -> list[Finding]:
        """Why this layer is bad; nothing if no bug between blocks explains it."""
        if name in self.walk.inputs:
            return super().findings(name, together)
        compared = self.comparisons[name]
        lost = ~np.isfinite(compared.y_hat)
        if lost.any():
            return [not_finite(name, float(lost.mean()), overflow=False)]
        if name not in self.walk.others:  # what is behind an output of another size has another
            return []
        found = [m for m in self._mutants(name) if self._gives(name, m.variant.program.y)]
        if not found:
            return [wrong_shape(name, compared.report.note)] if compared.bound is None else []
        first, also = found[0], (each.bug.name for each in found)
        others = tuple(dict.fromkeys(bug for bug in also if bug != first.bug.name))
        advice = first.bug.advice
        return [
            Finding(first.bug.name, name, None, 1.0, 1.0, first.says, advice, equivalents=others)
        ]

    def _mutants(self, name: str) -> Iterator[Mutant[NodeProgram]]:
        """What else a port could do between blocks."""
        node, xs = self.walk.others[name]
        site = Site(NodeProgram(node, tuple(xs), self.walk.run), xs[0])
        yield from planted(NODE_BUGS, site, name)

    def _gives(self, name: str, y: Array) -> bool:
        """Whether the candidate's output is `y`, to rounding."""
        compared = self.comparisons[name]
        if y.shape != compared.y_hat.shape:
            return False
        error = np.abs(compared.y_hat - y)
        if compared.bound is None:
            return bool(error.max(initial=0) <= _ALIKE * np.abs(y).max(initial=0))
        return bool((error <= _ROOM * compared.bound.certified).all())

    def unexplained(self, name: str) -> Finding:
        """What is said of a bad layer that no finding explains."""
        compared = self.comparisons[name]
        says = ""
        if compared.bound is not None:
            beyond = ~(np.abs(compared.y_hat - compared.y) <= compared.bound.certified)
            says = f"{beyond.mean():.1%} of its outputs are beyond their bound"
        advice = "the bug is not in the library: compare this layer's operation and inputs"
        return Finding("unknown", name, None, 0.0, 0.0, says, advice)

    def strangeness(self, beyond: list[str], diagnosis: list[Finding]) -> str:
        """As of chains; or if hidden layers may err by so much, though they hardly do."""
        excused = [name for name in beyond if self.certain.get(name)]
        known = any(each.bug != "unknown" for each in diagnosis)
        if not excused or excused != beyond or known:
            return super().strangeness(beyond, diagnosis)
        return (
            f"{beyond[0]} is beyond what rounding in the layers before it, which are not shown,"
            " likely makes of it, but within what it can, and no bug of the library explains it:"
            f" show {listed(dict.fromkeys(self.walk.hidden))}, too"
        )


def judge_graph(
    programs: Programs, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on layer outputs of a candidate, NCHW by layer name, for the images `x`."""
    arch = programs.model.arch
    walk = _Walk(programs, precision).along(outputs.layers, x)
    if not walk.comparisons:
        why = "no layer's input and output are both known: give its layers, not its logits alone"
        return Report("cannot-judge", why, arch.name, candidate, precision.name)
    certain: dict[str, bool] = {}
    if walk.hidden and walk.wrong:
        widest = _Walk(programs, precision, "certified").along(outputs.layers, x)
        certain = {name: widest.comparisons[name].report.ok for name in walk.wrong}
    hidden = [name for name in programs if name in walk.hidden]
    judged = {*walk.comparisons, *hidden}
    why = "too little is known of what it is given and gives"
    unjudged = {name: why for name in _with_arrays(programs.model) if name not in judged}
    if hidden:
        wider = "not shown, and computed for the candidate, whose next output may be off by what"
        wider += " rounding in them likely makes of it: "
        outputs = replace(outputs, notes=(*outputs.notes, wider + listed(hidden)))
    case = _GraphCase(
        programs,
        walk.comparisons,
        x,
        outputs,
        precision,
        unjudged,
        candidate,
        frozenset(walk.comparisons.keys() - walk.inputs.keys()),
        walk=walk,
        certain=certain,
    )
    return explain(case)


def _with_arrays(model: Model) -> list[str]:
    """The layers that an "agree" must have seen: the blocks and the head."""
    return [*(spec.name for spec in model.arch.blocks), model.arch.head.name]


def _shape(extent: Extent, own: Array) -> tuple[int, ...]:
    """A node's extent; of what has one pixel, the channels alone where it is given so."""
    return extent[:1] if own.ndim == 2 and extent[1:] == (1, 1) else extent
