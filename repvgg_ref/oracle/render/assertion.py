"""A report as the message of a failed assertion: plain text, the whole story in some ten lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from repvgg_ref.oracle.render.words import (
    LOOKS,
    estimate,
    next_steps,
    percent,
    place,
    remarks,
    sureness,
    visible,
)
from repvgg_ref.oracle.report import Finding, Report

_LABEL = 12
_WIDTH = 96
_MOST_FINDINGS = 3


def assertion_text(report: Report, *, page: str | None = None) -> str:
    """Verdict, reason, first bad layer, diagnosis and advice.

    Parameters
    ----------
    page : str, optional
        Where the HTML report was written.
    """
    title = LOOKS[report.verdict].title.lower()
    lines = [f"{visible(report.candidate)}: {title} (reference: {visible(report.model)})", ""]
    for label, text in _entries(report, page):
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"  {label:<{_LABEL}}",
            subsequent_indent=" " * (_LABEL + 2),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _entries(report: Report, page: str | None) -> Iterator[tuple[str, str]]:
    yield "why", visible(report.reason)
    yield "precision", visible(report.precision)
    if report.first_bad_layer is not None:
        bad = sum(not layer.ok for layer in report.layers)
        of = f" ({bad} bad of {len(report.layers)})" if bad else ""  # none: it was not compared
        yield "first bad", visible(report.first_bad_layer) + of
    for index, finding in enumerate(report.diagnosis[:_MOST_FINDINGS]):
        yield "diagnosis" if index == 0 else "or/and", _finding(finding)
    for index, step in enumerate(next_steps(report)):
        yield "try next" if index == 0 else "", step
    for note in remarks(report):
        yield "note", note
    if page is not None:
        yield "report", page


def _finding(finding: Finding) -> str:
    parts = [f"{visible(finding.bug)} in {place(finding)}: {visible(finding.says)}"]
    if measured := estimate(finding):
        parts.append(f"measured {measured}")
    if finding.bug != "unknown":
        parts.append(f"explains {percent(finding.explains)} of the difference")
        parts.append(f"{sureness(finding)} ({percent(finding.confidence)})")
    if finding.equivalents:
        parts.append("the same on this data: " + ", ".join(map(visible, finding.equivalents)))
    return "; ".join(parts)
