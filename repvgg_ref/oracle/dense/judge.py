"""Networks that say a class for every pixel, judged layer by layer, each by itself.

As for chains, each layer is computed in float64 from the candidate's *own* inputs, and its output
held against a certified bound of that layer's rounding: of blocks `bounds.block`, of what stands
between them `bounds.nodes`. What a candidate leaves out between blocks is computed for it, and
how far its own may be from that is added to the next block's bound.

Only the certified bounds judge here: none of the statistical tests for chains.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.layers import Block, Extent
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.comparison import misshapen
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.dense.findings import dense_findings, other_output
from repvgg_ref.oracle.dense.port import DensePort, Judged, Known
from repvgg_ref.oracle.report import Report

_NOTE = (
    "each layer of a network that is no chain is held to its certified bound alone: errors far"
    " below it are not looked for"
)


def judge_dense(
    model: Model, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """The verdict on layer outputs of a candidate for the images `x`."""
    port = DensePort(model, outputs.layers, x, precision)
    layers = walked(port)
    bad = [each for each in layers if not each.report.ok]
    names, notes = (model.arch.name, candidate, precision.name), (*outputs.notes, _NOTE)
    reports = tuple(each.report for each in layers)
    if not layers:
        why = "no layer's input and output are both known: give its layers, not its logits alone"
        return Report("cannot-judge", why, *names, notes=outputs.notes)
    if bad:
        found = dense_findings(port, bad, layers)
        first = bad[0].report
        why = f"{first.name} is beyond its certified bound"
        if first.note:
            why = f"{first.name}: {first.note}"
        if found[0].bug != "unknown":
            why += f": {found[0].says}"
        residual = _residual(port, bad[0])
        notes = (*notes, outputs.problem) if outputs.problem is not None else notes
        return Report(
            "disagree", why, *names, reports, found, first.name, notes=notes, residual=residual
        )
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
    why = f"all {len(layers)} layers are within their certified bounds (at most {most:.1%} of one)"
    return Report("agree", why, *names, reports, notes=notes)


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
            port.known[node.name] = port.computed(node, inputs)
        if own is not None and np.isfinite(own).all():
            port.known[node.name] = Known(own, None)
    return layers


def _residual(port: DensePort, bad: Judged) -> Array | None:
    """Candidate minus reference, for the picture."""
    own = port.own(bad.node.name)
    return None if bad.y is None or own is None else own - bad.y
