"""Networks that say a class for every pixel, judged layer by layer, each by itself.

As for chains, each layer is computed in float64 from the candidate's *own* inputs, and its output
held against a certified bound of that layer's rounding: of blocks `bounds.block`, of what stands
between them `bounds.nodes`. What a candidate leaves out between blocks is computed for it, and
how far its own may be from that is added to the next block's bound.

Blocks whose input the candidate shows are held to the statistical tests for chains, too; what
stands between them, and what is behind a node that is left out, to certified bounds alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.layers import Block, Extent
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.comparison import misshapen
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.dense.estimated import case_of
from repvgg_ref.oracle.dense.findings import dense_findings, other_output
from repvgg_ref.oracle.dense.port import DensePort, Judged, Known
from repvgg_ref.oracle.diagnosis.explain import Case, diagnosed, is_strange, settle, what_was_tested
from repvgg_ref.oracle.report import Finding, LayerReport, Report


def judge_dense(
    model: Model, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on layer outputs of a candidate for the images `x`."""
    port = DensePort(model, outputs.layers, x, precision)
    layers = walked(port)
    names = model.arch.name, candidate, precision.name
    if not layers:
        why = "no layer's input and output are both known: give its layers, not its logits alone"
        return Report("cannot-judge", why, *names, notes=outputs.notes)
    case = case_of(port, outputs, layers, candidate)
    beyond, alarms = settle(case)
    layers = [_settled(case, each) for each in layers]
    said = what_was_tested(case, [each.node.name for each in layers])
    notes = (*outputs.notes, *filter(None, said), *_computed(port))
    reports = tuple(each.report for each in layers)
    bad = [each for each in layers if not each.report.ok]
    if bad:
        wrong = [each for each in bad if each.node.name not in alarms]
        found = tuple(diagnosed(case, [], alarms))
        if wrong:
            found = dense_findings(port, wrong, layers, case)
        elif strange := is_strange(case, beyond, list(found)):
            return Report("cannot-judge", strange, *names, reports, found, notes=notes)
        return _disagree(port, bad, found, outputs, names, reports, notes)
    if outputs.problem is not None:
        found = other_output(port)
        why = outputs.problem + "".join(f": {each.says}" for each in found)
        return Report("disagree", why, *names, reports, found, notes=notes)
    blocks = [spec.name for spec in model.arch.blocks]
    judged = {layer.name for layer in reports}
    missing = [name for name in (*blocks, model.arch.head.name) if name not in judged]
    if missing:
        why = f"all that is known agrees, but nothing is known of {', '.join(missing[:5])}"
        return Report("cannot-judge", why, *names, reports, notes=notes)
    most = max(layer.ratio for layer in reports)
    why = (
        f"all {len(layers)} layers are within their certified bounds (at most {most:.1%} of one),"
        f" and nothing but rounding shows in {len(case.estimates.samples)} blocks"
    )
    return Report("agree", why, *names, reports, notes=notes)


def _settled(case: Case, judged: Judged) -> Judged:
    """A layer with what was estimated of it, if anything was."""
    name = judged.node.name
    if name not in case.comparisons:
        return judged
    return judged._replace(report=case.layer_report(name))


def _computed(port: DensePort) -> list[str]:
    """What was computed for the candidate, if anything was."""
    hidden = [name for name, known in port.known.items() if known.slack is not None]
    wider = "not shown, and computed for the candidate, whose next output gets a wider bound: "
    return [wider + listed(hidden)] if hidden else []


def _disagree(
    port: DensePort,
    bad: Sequence[Judged],
    found: tuple[Finding, ...],
    outputs: Outputs,
    names: tuple[str, str, str],
    reports: tuple[LayerReport, ...],
    notes: tuple[str, ...],
) -> Report:
    """The verdict on a port of which the layers `bad` are wrong, as `found` explains."""
    first = bad[0].report
    why = f"{first.name} is beyond its certified bound"
    if first.note:
        why = f"{first.name}: {first.note}"
    if found[0].bug != "unknown":
        why += f": {found[0].says}"
    notes = (*notes, outputs.problem) if outputs.problem is not None else notes
    residual = _residual(port, bad[0])
    return Report(
        "disagree", why, *names, reports, found, first.name, notes=notes, residual=residual
    )


def walked(port: DensePort) -> list[Judged]:
    """Every node of which input and output are known, judged; `port.known` is filled in."""
    arch, x = port.model.arch, port.x
    layers: list[Judged] = []
    extents: dict[str, Extent] = {INPUT: (x.shape[1], x.shape[2], x.shape[3])}
    for node in arch.evaluated:
        inputs, own = port.inputs(node), port.own(node.name)
        extents[node.name] = node.op.extent([extents[name] for name in node.inputs])
        if own is not None and own.shape != (wanted := (len(x), *extents[node.name])):
            layers.append(Judged(node, misshapen(node.name, own.shape, wanted)))
            continue  # what is behind it has no input that can be computed with
        if inputs is not None and own is not None:
            layers.append(port.judged(node))
        elif inputs is not None and not isinstance(node.op, Block):
            port.known[node.name] = port.left_out(node, inputs)
        if own is not None and np.isfinite(own).all():
            port.known[node.name] = Known(own, None)
    return layers


def _residual(port: DensePort, bad: Judged) -> Array | None:
    """Candidate minus reference, for the picture."""
    own = port.own(bad.node.name)
    return None if bad.y is None or own is None else own - bad.y
