"""Networks that are no chain, judged node by node, each by itself: see `graphs.walk`.

Layers whose own input is known are then estimated as those of chains are: arithmetic, algorithms,
and what rounding does not explain (`diagnosis.explain`); all else is held to certified bounds
alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.layers import Block
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.arithmetic.operands import Seen
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.diagnosis.explain import Case, explain
from repvgg_ref.oracle.diagnosis.incomparable import wrong_shape
from repvgg_ref.oracle.diagnosis.one_channel import scaled_channel
from repvgg_ref.oracle.estimates.estimate import told
from repvgg_ref.oracle.estimates.port import is_estimable
from repvgg_ref.oracle.graphs.findings import NodeEvidence, of_shape, other_output
from repvgg_ref.oracle.graphs.inside import NO_ARITHMETIC, smallest_scales
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.graphs.walk import Walk
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Finding, LayerReport, Report

_MOST_PRODUCTS = 8192  # that a convolution sums up: of more, estimates take minutes and gigabytes
_MOST_WEIGHTS = 1 << 23  # of a linear layer: of a larger one its first outputs are estimated


@dataclass(frozen=True)
class GraphCase(Case):
    """A `Case` in which some layers have no program, or no input of the candidate's own."""

    port: GraphPort = field(kw_only=True)
    scales: Mapping[str, Mapping[str, float]] = field(kw_only=True)  # see `smallest_scales`
    kept: dict[str, NodeEvidence] = field(default_factory=dict)

    def input_of(self, name: str) -> Array:
        """The candidate's own input of a layer."""
        return self.port.inputs[name]

    def seen(self, name: str) -> Seen:
        """As of chains; of a large linear layer its first outputs, which have its numbers."""
        seen = super().seen(name)
        if not isinstance(seen.program, HeadProgram) or seen.program.weight.size <= _MOST_WEIGHTS:
            return seen
        most = max(1, _MOST_WEIGHTS // seen.program.weight.shape[1])
        weight, bias = seen.program.weight[:most], seen.program.bias[:most]
        first = replace(seen.program, weight=weight, bias=bias)
        return Seen(first, seen.x, seen.y[:, :most], seen.y_hat[:, :most])

    def excuse(self, name: str) -> bool:
        """Only what was computed from an own input shows an algorithm."""
        return name in self.port.inputs and super().excuse(name)

    def layer_report(self, name: str) -> LayerReport:
        """As of chains; of hidden layers, the factor that would have been seen in any of them."""
        report, scales = super().layer_report(name), self.scales.get(name)
        if not scales:
            return report
        return replace(report, detects={**report.detects, "hidden": told(max(scales.values()))})

    def roundoff(self, name: str) -> str:
        """The same of arithmetic."""
        return super().roundoff(name) if name in self.port.inputs else ""

    def caused(self, bad: list[str]) -> list[str]:
        """Not what only follows from another's size."""
        nodes = self.port.nodes
        return [name for name in bad if self.port.given(nodes[name]) is not None] or bad

    def evidence(self, name: str) -> NodeEvidence:
        """A node's comparison as the diagnosis wants it."""
        if name not in self.kept:
            self.kept.setdefault(name, NodeEvidence(self.port, name))
        return self.kept[name]

    def findings(self, name: str, together: Collection[str] = ()) -> list[Finding]:
        """As of chains; what nobody knows may as well be in what is hidden before the node."""
        found = super().findings(name, together)
        if found[0].bug == "unknown" and name not in self.estimates.samples:
            scaled = scaled_channel(self.evidence(name))
            found = found if scaled is None else [scaled]
        before = self.port.hidden_before(self.port.nodes[name])
        hidden = [node.name for node in before if node.name in self.port.hidden]
        if not hidden or found[0].bug != "unknown":
            return found
        where = f"{found[0].says}; in it, or in what is not shown before it: {listed(hidden)}"
        return [replace(found[0], says=where), *found[1:]]

    def is_searched(self, name: str) -> bool:
        """As of chains; a residual network's layers are too large."""
        return self.port.model.arch.is_dense and name == self.bad[0]

    def of_shape(self, name: str) -> list[Finding]:
        """Why an output is of another size."""
        compared, node = self.comparisons[name], self.port.nodes[name]
        found = [] if self.port.given(node) is None else of_shape(self.port, name)
        return found or [wrong_shape(name, compared.report.note)]

    def is_of(self, finding: Finding, name: str) -> bool:
        """The same, of what is hidden before the node as well."""
        places = self.port.hidden_before(self.port.nodes[name])
        return super().is_of(finding, name) or any(finding.layer == each.name for each in places)

    def alike(self, place: str) -> Collection[str]:
        """Of blocks nobody knows which could have a bug: those are tried one by one."""
        kind = type(self.port.nodes[place].op)
        return [n.name for n in self.port.nodes.values() if type(n.op) is kind is not Block]

    def is_possible(self, name: str) -> bool:
        """Whether the largest errors that hidden layers may have explain a node's output.

        They do not if it errs as a whole by more than rounding does at any pace.
        """
        port, compared = self.port, self.comparisons[name]
        assert compared.bound is not None
        if _size(compared.y_hat - compared.y) > NO_ARITHMETIC * _size(compared.bound.certified):
            return False
        widest = Walk(port.programs, port.outputs, port.x, port.precision, "certified")
        hidden = {node.name for node in port.hidden_before(port.nodes[name])}
        return widest.along({name, *hidden}).comparisons[name].report.ok

    def strangeness(self, beyond: list[str], diagnosis: list[Finding]) -> str:
        """As of chains; or if hidden layers may err by so much, though they hardly do."""
        known = any(each.bug != "unknown" for each in diagnosis)
        behind_hidden = bool(beyond) and set(beyond) <= set(self.port.wrong)
        if known or not behind_hidden or not all(map(self.is_possible, beyond)):
            return super().strangeness(beyond, diagnosis)
        before = self.port.hidden_before(self.port.nodes[beyond[0]])
        hidden = [node.name for node in before if node.name in self.port.hidden]
        return (
            f"{beyond[0]} is beyond what rounding in the layers before it, which are not shown,"
            " likely makes of it, but within what it can, and no bug of the library explains it:"
            f" show {listed(hidden)}, too"
        )


def judge_graph(
    programs: Programs, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on layer outputs of a candidate, NCHW by layer name, for the images `x`."""
    arch = programs.model.arch
    port = GraphPort(programs, outputs.layers, x, precision)
    port.along()
    if not port.comparisons:
        why = "no layer's input and output are both known: give its layers, not its logits alone"
        names = arch.name, candidate, precision.name
        return Report("cannot-judge", why, *names, notes=outputs.notes)
    judged = {*port.comparisons, *port.hidden}
    why = "too little is known of what it is given and gives"
    unjudged = {name: why for name in _with_arrays(programs.model) if name not in judged}
    scales = {name: smallest_scales(port, port.nodes[name]) for name in port.comparisons}
    case = GraphCase(
        programs,
        port.comparisons,
        x,
        replace(outputs, notes=(*outputs.notes, *_computed(port, scales))),
        precision,
        unjudged,
        candidate,
        frozenset(name for name in port.comparisons if not _is_estimated(port, name)),
        port=port,
        scales=scales,
    )
    report = explain(case)
    if outputs.problem is None:
        return report
    if case.bad:
        return replace(report, notes=(*report.notes, outputs.problem))
    found = other_output(port)
    why = report.reason + "".join(f": {each.says}" for each in found)
    first = found[0].layer if found else None
    return replace(report, reason=why, diagnosis=found, first_bad_layer=first)


def _computed(port: GraphPort, scales: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What was computed for the candidate, if anything was."""
    hidden = [name for name, known in port.known.items() if known.slack is not None]
    if not hidden:
        return []
    wider = "not shown, and computed for the candidate, whose next output may be off by what"
    said = [f"{wider} rounding in them makes of it: {listed(hidden)}"]
    sizes = [(size, name) for each in scales.values() for name, size in each.items()]
    if sizes:
        size, name = max(sizes)
        said.append(
            "a factor on the outputs of a layer that is not shown would have been seen from"
            f" 1 + {size:.1g} on (in {name}, the least sensitive one)"
        )
    return said


def _is_estimated(port: GraphPort, name: str) -> bool:
    """Whether a layer was computed of the candidate's own input, and is not too large."""
    if name not in port.inputs:
        return False
    program = port.programs[name]
    if not is_estimable(program, port.precision):
        return False
    if isinstance(program, HeadProgram):
        return True
    return bool(program.fused_kernel().weight[0].size <= _MOST_PRODUCTS)


def _size(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _with_arrays(model: Model) -> list[str]:
    """The layers that an "agree" must have seen: the blocks and the head."""
    return [*(spec.name for spec in model.arch.blocks), model.arch.head.name]
