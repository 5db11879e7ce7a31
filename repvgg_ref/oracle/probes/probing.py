"""A port that was right once is called again in other ways, and the calls are judged alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Candidate, Outputs
from repvgg_ref.oracle.probes.calls import Made, further_calls
from repvgg_ref.oracle.probes.contrasts import contrasted
from repvgg_ref.oracle.probes.first_call import FirstCall
from repvgg_ref.oracle.probes.judging import judged
from repvgg_ref.oracle.probes.naming import named
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import Finding, LayerReport, ProbeReport, Report

Judge = Callable[..., Report]  # `verification.judge`


def probed(
    report: Report, programs: Programs, port: Candidate, first: FirstCall, judge: Judge
) -> Report:
    """`report`, which is the first call's, with what further calls of the port show.

    A candidate that cannot be called is left as it is.
    """
    if not port.is_called or not report.layers:
        return report
    if report.verdict == "disagree":
        return contrasted(report, programs, port, first)
    precision = PRECISIONS[report.precision]
    calls = further_calls(programs.model.arch, port, first, precision)
    if report.equivalences:
        calls = [m.with_outputs(_logits_alone) for m in calls]
        first = replace(first, outputs=_logits_alone(first.outputs))
    used = max((layer.ratio for layer in report.layers if layer.ratio == layer.ratio), default=0.0)
    found = judged(calls, programs, precision, used=used, first=first.outputs)
    made = _confirmed(found, programs, report, judge)
    written = [_WROTE] if first.outputs.wrote_input else []
    probes = (*(m.report for m in made), *written)
    report = replace(report, probes=probes, notes=(*report.notes, _in_a_line(probes)))
    wrong = [m for m in made if m.is_wrong]
    if wrong:
        return _disagreeing(report, wrong, named(made))
    return _writing(report) if written else report


def _logits_alone(outputs: Outputs) -> Outputs:
    """Without layers: the first call showed their order and scale only where they were active."""
    return replace(outputs, layers={n: y for n, y in outputs.layers.items() if n == "linear"})


def _confirmed(
    made: Sequence[Made], programs: Programs, report: Report, judge: Judge
) -> list[Made]:
    """Without what the whole judgement excuses: a runtime may choose Winograd for one size only.

    Once a call is found wrong by it, those after it are taken for wrong as well. Logits are held
    to so wide a bound that nothing needs to be excused.
    """
    sure = False
    confirmed = []
    for m in made:
        if m.deviation is not None and m.outputs is not None and not sure:
            if set(m.outputs.layers) == {"linear"}:
                sure = True
            else:
                whole = judge(
                    programs,
                    m.outputs,
                    m.x,
                    precision=report.precision,
                    candidate=report.candidate,
                )
                sure = whole.verdict == "disagree"
            if not sure:
                m = replace(m, deviation=None, is_wrong=False)
        confirmed.append(m)
    return confirmed


_WROTE = ProbeReport("the batch, looked at after the call", False, "the port has written into it")


def _disagreeing(report: Report, wrong: Sequence[Made], finding: Finding) -> Report:
    """The verdict on a port that one of the calls shows to be wrong."""
    at = next((m for m in wrong if m.deviation is not None), None)
    layer = at.deviation.layer if at is not None and at.deviation is not None else None
    calls = f"{wrong[0].probe.call!r}" + (
        f" and {len(wrong) - 1} more calls" if len(wrong) > 1 else ""
    )
    what = wrong[0].report.says
    return replace(
        report,
        verdict="disagree",
        reason=f"right when called first, wrong with {calls}: {what}: {finding.says}",
        first_bad_layer=layer.name if layer is not None else None,
        layers=tuple(_or_bad(each, layer, wrong[0].probe.call) for each in report.layers),
        diagnosis=(finding, *report.diagnosis),
    )


def _or_bad(layer: LayerReport, bad: LayerReport | None, call: str) -> LayerReport:
    if bad is None or layer.name != bad.name:
        return layer
    return replace(bad, ok=False, note=f"with {call!r}" + (f": {bad.note}" if bad.note else ""))


def _writing(report: Report) -> Report:
    finding = Finding(
        "input-modified",
        None,
        None,
        1.0,
        0.0,
        "the port writes into the batch that it is given, so the caller's images are others after "
        "the call",
        "copy the batch before changing it in place",
    )
    reason = f"the outputs are right, but {finding.says}"
    return replace(
        report, verdict="disagree", reason=reason, diagnosis=(finding, *report.diagnosis)
    )


def _in_a_line(probes: Sequence[ProbeReport]) -> str:
    """What was called, for people."""
    texts = []
    for ok, word in ((True, "right with"), (False, "wrong with"), (None, "not judged:")):
        calls = [probe.call for probe in probes if probe.ok is ok]
        if calls:
            texts.append(f"{word} {', '.join(calls)}")
    return "called again: " + "; ".join(texts)
