"""Networks that are no chain, judged layer by layer, each by itself.

As for chains, each layer is computed in float64 from the candidate's *own* inputs, and its output
held against a certified bound of that layer's rounding: of blocks `bounds.block`, of what stands
between them `bounds.nodes`. What a candidate leaves out (pools, the convolutions
inside a residual block) is computed for it, and how far its own may be from that is added to the
bound of what comes after.

Only the certified bounds judge here: none of the statistical tests for chains, which tell a fast
algorithm from a wrong layer. What is beyond the bound of direct sums, within Winograd's and no bug
of the library is judged neither way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT, Network, Node
from repvgg_ref.models.layers import Block, Extent
from repvgg_ref.models.network import Model
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.block import block_bound
from repvgg_ref.oracle.bounds.comparison import (
    Comparison,
    compare,
    diagnosis_bound,
    held,
    misshapen,
)
from repvgg_ref.oracle.bounds.nodes import moved, node_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.winograd import applies
from repvgg_ref.oracle.bugs import NODE_BUGS, Site
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.diagnosis.diagnose import diagnose, diagnose_shape
from repvgg_ref.oracle.diagnosis.everywhere import Layers, merged
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import NodeProgram, wide_pass
from repvgg_ref.oracle.programs.program import layer_output, plain
from repvgg_ref.oracle.report import EVERYWHERE, Finding, LayerReport, Report

_MOST_LEFT_OUT = 5  # convolutions between outputs: a stem's, a bottleneck's and its projection
_MOST_DIAGNOSED = 4  # layers
_ROOM = 4  # of another function's rounding, in bounds of the right one
_NOTE = (
    "each layer of a network that is no chain is held to its certified bound alone: errors far"
    " below it are not looked for"
)


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


class _Layer(NamedTuple):
    """What was compared, for the diagnosis; None where it was no block of its own input."""

    x: Array
    found: Comparison


class _Judge:
    """One walk along a network with a candidate's outputs."""

    def __init__(self, model: Model, precision: Precision) -> None:
        self.model, self.precision = model, precision
        self.programs = Programs(model)
        self.run = wide_pass(model)
        self.reports: list[LayerReport] = []
        self.between: dict[str, list[Finding]] = {}
        self.blocks: dict[str, _Layer] = {}
        self.covered: set[str] = set()
        self.beyond: dict[str, float] = {}

    def computed(self, node: Node, inputs: list[Known]) -> Known | None:
        """A node for a candidate that left it out; None if that says too little of its own."""
        on_the_way = tuple(dict.fromkeys(name for each in inputs for name in each.left_out))
        if not isinstance(node.op, Block):
            xs = [each.y for each in inputs]
            y = node.op.forward(node.name, xs, self.run)[0]
            bound = node_bound(node, xs, self.run, self.precision)
            return Known(y, bound + self._slack(node, inputs), on_the_way)
        if len(on_the_way) >= _MOST_LEFT_OUT:
            return None
        (only,) = inputs
        y = layer_output(plain(self.programs[node.name]), only.y)
        found = compare(self.programs[node.name], only.y, y, self.precision)
        assert found.bound is not None
        bound = found.bound.certified + self._slack(node, inputs)
        if np.median(bound) > np.abs(y).max():
            return None
        return Known(y, bound, (*on_the_way, node.name))

    def compare(self, node: Node, inputs: list[Known], own: Array) -> None:
        """Hold a candidate's own output against the node's of its inputs."""
        is_own = all(each.slack is None for each in inputs)
        if isinstance(node.op, Block):
            report = self._block(node, inputs[0], own, is_own=is_own)
        else:
            xs = [each.y for each in inputs]
            y = node.op.forward(node.name, xs, self.run)[0]
            bound = node_bound(node, xs, self.run, self.precision) + self._slack(node, inputs)
            report = held(node.name, y, own, bound)
            self.beyond[node.name] = float((~(np.abs(own - y) <= bound)).mean())
            if not report.ok:
                self.between[node.name] = self._between(node, xs, own, bound)
        self.reports.append(report)
        if report.ok:
            self.covered.update(name for each in inputs for name in each.left_out)

    def _between(self, node: Node, xs: list[Array], own: Array, bound: Array) -> list[Finding]:
        """What else the port may have computed between blocks."""
        site = Site(NodeProgram(node, tuple(xs), self.run), xs[0], own)
        found = []
        for mutant in planted(NODE_BUGS, site, node.name):
            y = mutant.variant.program.y
            if y.shape == own.shape and bool((np.abs(own - y) <= _ROOM * bound).all()):
                bug = mutant.bug
                found.append(Finding(bug.name, node.name, None, 1.0, 1.0, mutant.says, bug.advice))
        return found

    def _block(self, node: Node, given: Known, own: Array, *, is_own: bool) -> LayerReport:
        found = compare(self.programs[node.name], given.y, own, self.precision)
        if found.bound is None or is_own:
            self.blocks[node.name] = _Layer(given.y, found)
            return found.report
        bound = found.bound.certified + self._slack(node, [given])
        self.beyond[node.name] = float((~(np.abs(own - found.y) <= bound)).mean())
        return held(node.name, found.y, own, bound)

    def _slack(self, node: Node, inputs: list[Known]) -> Array:
        """By how much the node's output may differ since its inputs may."""
        slacks = [0 * each.y if each.slack is None else each.slack for each in inputs]
        if not isinstance(node.op, Block):
            return moved(node, slacks, self.run)
        program = self.programs[node.name]
        how = {name: getattr(program, name) for name in ("stride", "dilation", "groups")}
        weight = np.abs(program.fused_kernel().weight)
        padding = program.pads[0], program.pads[1]
        return REFERENCE.conv2d_forward(slacks[0], weight, None, padding=padding, **how)[0]

    def within_winograd(self, name: str) -> bool:
        """Whether a bad block errs by no more than F(6 x 6, 3 x 3), the coarsest in wide use."""
        layer = self.blocks.get(name)
        if layer is None or layer.found.bound is None:
            return False
        program = self.programs[name]
        if program.size != (3, 3) or not applies(6, program.stride, program.dilation):
            return False
        x, found = layer
        bound = block_bound(program, x, found.y, self.precision, algorithm="winograd6")
        return bool((np.abs(found.y_hat - found.y) <= bound.certified).all())

    # ------------------------------------------------------------------ diagnosis

    @property
    def bad(self) -> list[str]:
        """Layers that are not right."""
        return [report.name for report in self.reports if not report.ok]

    @cached_property
    def diagnosis(self) -> list[Finding]:
        """What explains the bad layers."""
        bad = [name for name in self.bad if name in self.blocks]
        chosen = bad[:_MOST_DIAGNOSED]
        found = {name: self._findings(name) for name in chosen}
        names = [report.name for report in self.reports]
        judged = [name for name in names if name in self.blocks]
        known = merged(found, Layers(judged, bad, self._evidence))
        known += [each for name in names for each in self.between.get(name, ())]
        places = {name: place for place, name in enumerate([EVERYWHERE, *names])}
        return sorted(known, key=lambda each: places.get(str(each.layer), 0))

    def described(self, name: str) -> tuple[str, str]:
        """What can be said of a layer that no bug explains, and what to do."""
        share = self.beyond.get(name)
        says = "" if share is None else f"{share:.1%} of its outputs are beyond their bound"
        return says, "the bug is not in the library: compare this layer's operation and inputs"

    def _findings(self, name: str) -> list[Finding]:
        """Why a block is bad."""
        x, found = self.blocks[name]
        if found.bound is None:
            return diagnose_shape(site_of(self.programs, name, x, found.y_hat), found.y_hat)
        evidence = self._evidence(name)
        return [] if evidence is None else diagnose(evidence, thoroughly=False)

    def _evidence(self, name: str) -> LayerEvidence | None:
        x, found = self.blocks[name]
        if found.bound is None or not np.isfinite(found.y_hat).any():
            return None
        site = site_of(self.programs, name, x, found.y_hat)
        bound = diagnosis_bound(site.program, x, found.y, self.precision)
        return LayerEvidence(site, found.y, found.y_hat, bound, self.precision.number_format)


def judge_graph(
    model: Model, outputs: Mapping[str, Array], x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on layer outputs of a candidate, NCHW by layer name, for the images `x`."""
    judge = _Judge(model, precision)
    known: dict[str, Known] = {INPUT: Known(np.asarray(x, np.float64))}
    extents: dict[str, Extent] = {INPUT: (x.shape[1], x.shape[2], x.shape[3])}
    for node in model.arch.evaluated:
        inputs = [known[name] for name in node.inputs if name in known]
        own = outputs.get(node.name)
        own = None if own is None else np.asarray(own, np.float64)
        extents[node.name] = node.op.extent([extents[name] for name in node.inputs])
        if own is not None and own.shape != (wanted := (len(x), *_shape(node, extents, own))):
            judge.reports.append(misshapen(node.name, own.shape, wanted))
            continue  # what is behind it has no input that can be computed with
        if len(inputs) == len(node.inputs):
            if own is not None:
                judge.compare(node, inputs, own)
            elif (found := judge.computed(node, inputs)) is not None:
                known[node.name] = found
        if own is not None and np.isfinite(own).all():
            known[node.name] = Known(own)
    return _report(judge, model.arch, outputs, candidate)


def _shape(node: Node, extents: Mapping[str, Extent], own: Array) -> tuple[int, ...]:
    """A node's extent; of what has one pixel, the channels alone where it is given so."""
    extent = extents[node.name]
    return extent[:1] if own.ndim == 2 and extent[1:] == (1, 1) else extent


def _strange(judge: _Judge) -> Report | None:
    """No verdict, where every bad layer may come of Winograd's algorithm and of no known bug."""
    if not all(judge.within_winograd(name) for name in judge.bad):
        return None
    if any(each.bug != "unknown" for each in judge.diagnosis):
        return None
    why = (
        f"{judge.bad[0]} is beyond the bound of direct sums but within that of Winograd's, and no"
        " bug of the library explains it: of a network that is no chain the two are not told apart"
        " yet; give outputs of direct convolutions"
    )
    return Report("cannot-judge", why, "", "", judge.precision.name, notes=(_NOTE,))


def _report(judge: _Judge, arch: Network, outputs: Mapping[str, Any], candidate: str) -> Report:
    layers, bad = tuple(judge.reports), next(iter(judge.bad), None)
    names = arch.name, candidate, judge.precision.name
    if not layers:
        why = "no layer's input and output are both known: give its layers, not its logits alone"
        return Report("cannot-judge", why, *names)
    judged = {layer.name for layer in layers} | judge.covered
    notes: tuple[str, ...] = (_NOTE,)
    if judge.covered:
        hidden = [name for name in judge.programs if name in judge.covered]
        wider = "not shown, and computed for the candidate, whose next output gets a wider bound: "
        notes = (*notes, wider + listed(hidden))
    blocks = [spec.name for spec in arch.blocks]
    missing = [name for name in (*blocks, arch.head.name) if name not in judged]
    if bad is not None:
        if (strange := _strange(judge)) is not None:
            return replace(strange, model=arch.name, candidate=candidate, layers=layers)
        known = tuple(judge.diagnosis)
        if not any(each.is_in(bad) for each in known):
            known = (Finding("unknown", bad, None, 0.0, 0.0, *judge.described(bad)), *known)
        note = next(layer.note for layer in layers if layer.name == bad)
        why = f"{bad}: {note}" if note else f"{bad} is beyond its certified bound"
        if says := next((each.says for each in known if each.is_in(bad) and each.says), ""):
            why += f": {says}"
        return Report("disagree", why, *names, layers, known, bad, notes)
    if missing:
        why = f"all that is known agrees, but nothing is known of {', '.join(missing[:5])}"
        return Report("cannot-judge", why, *names, layers, notes=notes)
    most = max(layer.ratio for layer in layers)
    why = f"all {len(layers)} layers are within their certified bounds (at most {most:.1%} of one)"
    return Report("agree", why, *names, layers, notes=notes)
