"""A port that was wrong in its first call, and the calls that it does right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Candidate
from repvgg_ref.oracle.probes.calls import Made, calls_in_turn, deadline
from repvgg_ref.oracle.probes.first_call import FirstCall
from repvgg_ref.oracle.probes.judging import judged
from repvgg_ref.oracle.probes.naming import finding
from repvgg_ref.oracle.probes.plan import Probe, same_again, similar
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Report

_GROSS = 10.0  # times a bound: what is less may fail to show in another call by chance


def contrasted(report: Report, programs: Programs, port: Candidate, first: FirstCall) -> Report:
    """`report`, which is a wrong first call's, with the calls that the port does right.

    Only where the first image was grossly wrong: a finer error, or one of another image alone, may
    fail to show in other calls though it does not depend on them.
    """
    precision = PRECISIONS[report.precision]
    x = np.asarray(first.x, np.float32)
    layers = {name: array[:1] for name, array in first.outputs.layers.items()}
    image = Made(
        Probe("the first image", "depends-on-call", x[:1]), replace(first.outputs, layers=layers)
    )
    (image,) = judged([image], programs, precision)
    if image.deviation is None or image.deviation.layer.ratio < _GROSS:  # NaN is gross
        return report
    probes = [same_again(x), *similar(programs.model.arch, x)]
    made = judged(calls_in_turn(port, first, probes, deadline(first)), programs, precision)
    report = replace(report, probes=tuple(m.report for m in made))
    right = [m for m in made if m.outputs is not None and not m.is_wrong]
    if not right:
        return report
    known = [each for each in report.diagnosis if each.bug != "unknown"]
    call = finding(_bug(right), image.deviation.layer.name)
    note = f"wrong in the first call, but right with {', '.join(m.probe.call for m in right)}"
    return replace(
        report,
        diagnosis=(*known, call) if known else (call, *report.diagnosis),
        notes=(*report.notes, note),
    )


def _bug(right: Sequence[Made]) -> str:
    """What the first call had that those which are right have not."""
    kinds = [m.probe.kind for m in right]
    for kind in ("state-between-calls", "batch-dependent"):
        if kind in kinds:
            return kind
    return kinds[0] if len(set(kinds)) == 1 else "depends-on-call"
