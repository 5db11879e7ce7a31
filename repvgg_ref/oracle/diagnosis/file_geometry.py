"""Two files of weights that say strides or dilations may contradict each other."""

from __future__ import annotations

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
