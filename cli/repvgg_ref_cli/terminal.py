"""An oracle's report for a terminal, as a rich renderable.

Everything that may come from a file is a `Text`, never markup. The verdict comes last, where the
eye is when the output has scrolled by. The line of layers is ASCII; rich replaces its frames.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from repvgg_ref.oracle.render.words import (
    LOOKS,
    count,
    estimate,
    next_steps,
    number,
    percent,
    place,
    remarks,
    state,
    sureness,
    visible,
)
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from repvgg_ref_cli.console import Fitting

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

_COLOURS = {"agree": "green", "disagree": "red", "cannot-judge": "yellow"}
_MARKS = {
    "ok": ("o", "green"),
    "excused": ("o", "yellow"),
    "bad": ("X", "bold red"),
    "hidden": ("X", "bold red"),
    "void": ("?", "bold red"),
}
_STATES = {"ok": "ok", "excused": "ok", "bad": "BAD", "hidden": "BAD", "void": "BAD"}
_PLACE = 2  # the column of the scale, which means something in a table only
_LEFT, _RIGHT = 9, 4  # characters on either side of the bound
_DECADES_LEFT, _DECADES_RIGHT = 4.0, 4.0


def render_terminal(report: Report) -> RenderableType:
    """Layers with their errors on a logarithmic scale, the diagnosis, and the verdict."""
    from rich.console import Group

    parts: list[RenderableType] = []
    if report.layers:
        parts.append(Fitting(_layers(report), drop=[_PLACE]))
    parts += [_finding(finding) for finding in report.diagnosis]
    parts.append(_verdict(report))
    return Group(*parts)


def _layers(report: Report) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(report.unit, no_wrap=True)
    table.add_column("", no_wrap=True)
    scale = f"{'error':<{_LEFT}}|{'>':>{_RIGHT}}"
    table.add_column(scale, no_wrap=True)
    for title in ("error", "bound", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for layer in report.layers:
        is_first = layer.name == report.first_bad_layer
        table.add_row(
            Text(visible(layer.name), style="bold red" if is_first else ""),
            Text(_STATES[state(layer)], style=_MARKS[state(layer)][1]),
            _position(layer),
            number(layer.max_error),
            number(layer.bound),
            number(layer.ratio),
            Text(_note(layer, is_first)),
        )
    return table


def _note(layer: LayerReport, is_first: bool) -> str:
    parts = ["first"] if is_first else []
    if layer.note:
        parts.append(visible(layer.note))
    elif layer.ok and layer.ratio <= 1 < layer.likely_ratio:
        parts.append(f"unusual: {number(layer.likely_ratio)} times the likely bound")
    return "; ".join(parts)


def _position(layer: LayerReport) -> Text:
    """The error's place on a logarithmic line, ``|`` the bound."""
    from rich.text import Text

    letters = list("." * _LEFT + "|" + "." * _RIGHT)
    mark, style = _MARKS[state(layer)]
    ratio = layer.ratio
    if math.isnan(ratio):
        at = len(letters) - 1
    elif ratio <= 0:
        at = 0
    else:
        decades = math.log10(ratio) if math.isfinite(ratio) else math.inf
        if decades <= 0:
            at = max(0, min(_LEFT - 1, _LEFT + math.floor(decades * _LEFT / _DECADES_LEFT)))
        else:
            steps = min(decades * _RIGHT / _DECADES_RIGHT, float(_RIGHT))
            at = _LEFT + max(1, math.ceil(steps))
    letters[at] = mark
    line = Text("".join(letters), style="dim")
    line.stylize(f"not dim {style}", at, at + 1)
    return line


def _finding(finding: Finding) -> Panel:
    from rich.panel import Panel
    from rich.text import Text

    text = Text(visible(finding.says))
    facts = [("measured", estimate(finding))] if estimate(finding) else []
    if finding.bug != "unknown":
        facts.append(("explains", f"{percent(finding.explains)} of the difference"))
        facts.append(("confidence", f"{percent(finding.confidence)}, {sureness(finding)}"))
    if finding.equivalents:
        facts.append(("the same on this data", ", ".join(map(visible, finding.equivalents))))
    for label, value in facts:
        text.append(f"\n{label} ", style="dim").append(value)
    title = Text(f" {visible(finding.bug)} in {place(finding)} ", style="bold")
    return Panel(text, title=title, title_align="left", border_style="magenta")


def _verdict(report: Report) -> Panel:
    from rich.panel import Panel
    from rich.text import Text

    colour = _COLOURS[report.verdict]
    text = Text(visible(report.reason))
    text.append(f"\nreference {visible(report.model)}, precision {visible(report.precision)}, ")
    text.append(f"{count(len(report.layers), report.unit)} judged", style="")
    for note in remarks(report):
        text.append(f"\nnote: {note}", style="dim")
    for step in next_steps(report):
        text.append("\n-> ", style=f"bold {colour}").append(step)
    title = Text(
        f" {LOOKS[report.verdict].title.upper()}: {visible(report.candidate)} ",
        style=f"bold {colour}",
    )
    return Panel(text, title=title, title_align="left", border_style=colour)
