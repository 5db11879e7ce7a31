"""Two files of weights that say strides or dilations may contradict each other."""

from __future__ import annotations

from dataclasses import replace

from repvgg_ref.models.geometry import geometry_of
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.report import Finding, Report


def other_steps(model: Model, port: Model, name: str) -> Report | None:
    """The report on a file that says other strides or dilations than the reference has."""
    known, theirs = geometry_of(model.arch), geometry_of(port.arch)
    for what, bug in (("strides", "stride-moved"), ("dilations", "dilation-added")):
        open_, ours = getattr(port.assumed, what), getattr(known, what)
        steps = {n: s for n, s in getattr(theirs, what).items() if n not in open_ and s != ours[n]}
        if not steps:
            continue
        shown, first = ",".join(f"{n}={s}" for n, s in steps.items()), next(iter(steps))
        assumed = set(steps) <= set(getattr(model.assumed, what))
        says = f"{name} says {what} {shown}, and the reference has {ours[first]} in {first}"
        if assumed:
            says += ", which was assumed: its file does not say it"
        advice = f"if the network was trained so, give --{what} {shown}"
        found = Finding("assumption" if assumed else bug, first, None, 1.0, 1.0, says, advice)
        return Report(
            *("disagree", says, model.name, name, "weights"),
            first_bad_layer=first,
            diagnosis=(found,),
        )
    return None


def with_unsaid_steps(report: Report, model: Model, port: Model, name: str) -> Report:
    """The report on a file of other steps than the reference has, where nobody says the file's.

    Its arrays may be right; whoever loads it as it is computes another network.
    """
    known, theirs = geometry_of(model.arch), geometry_of(port.arch)
    for what in ("strides", "dilations"):
        ours, open_ = getattr(known, what), getattr(port.assumed, what)
        apart = {n: s for n, s in getattr(theirs, what).items() if n in open_ and s != ours[n]}
        if not apart:
            continue
        first, steps = next(iter(apart)), ",".join(f"{n}={ours[n]}" for n in apart)
        note = (
            f"assumed and not judged: {name} does not say its {what}; loaded as it is, {first} has"
            f" {apart[first]} and the reference {ours[first]}: load it with --{what} {steps}"
        )
        reason = f"{report.reason}; its {what} are assumed and not judged"
        report = replace(report, reason=reason, notes=(note, *report.notes))
    return report
