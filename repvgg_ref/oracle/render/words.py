"""A report's numbers and judgements in words; every renderer takes them from here.

Names and messages may come from a hostile file: `visible` is the one door they go through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from repvgg_ref.oracle.report import EVERYWHERE, Finding, LayerReport, Report, Verdict
from weights_io import shortened

State = Literal["ok", "excused", "bad", "hidden", "void"]

_SURE = ((0.99, "practically certain"), (0.8, "likely"), (0.4, "possible"), (0.01, "unlikely"))
_MOST_DIGITS = 12
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Look:
    """How a verdict is told: `title` completes "the candidate ...", `meaning` says what follows."""

    title: str
    meaning: str


LOOKS: Mapping[Verdict, Look] = {
    "agree": Look(
        "Agrees",
        "Every layer computes what the reference computes, up to rounding that is proven to be "
        "allowed.",
    ),
    "disagree": Look(
        "Disagrees",
        "At least one layer computes something else: rounding cannot explain the difference.",
    ),
    "cannot-judge": Look("Cannot judge", "Nothing was proven either way. This is not a pass."),
}


def visible(text: object) -> str:
    """`text` on one line, every character that does not print as a backslash escape.

    Lone surrogates, terminal escapes and characters that reorder text are among those.
    """
    return shortened(str(text))


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")


def state(layer: LayerReport) -> State:
    """What is to be said about a layer.

    "excused" is within a wider bound than the one drawn (Winograd), "hidden" a bug within the
    bound, "void" nothing that could be compared.
    """
    if math.isnan(layer.ratio):
        return "void"
    if layer.ok:
        return "excused" if layer.ratio > 1 else "ok"
    return "bad" if layer.ratio > 1 else "hidden"


def used(layer: LayerReport) -> str:
    """How much of the bound is used: ``12 %`` within it, ``4.2 x`` beyond."""
    ratio = layer.ratio
    if math.isnan(ratio):
        return "-" if layer.note.startswith("shape") else "NaN"
    if ratio <= 1:
        return f"{100 * ratio:.2g} %" if ratio < 0.995 else "100 %"
    return f"{number(ratio)} {TIMES}"


def estimate(finding: Finding) -> str:
    """The measured parameter with its standard error, no more digits than that allows."""
    value, error = finding.estimate, finding.standard_error
    if value is None or not math.isfinite(value):
        return ""
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.6g}"
    digits = _MOST_DIGITS
    if value != 0:
        digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(error)) + 2
    return f"{value:.{min(max(digits, 1), _MOST_DIGITS)}g} ± {error:.2g}"


def percent(share: float) -> str:
    """A probability or a share; never rounded up to 100 % or down to 0."""
    if not math.isfinite(share):
        return "-"
    shown = 100 * min(max(share, 0.0), 1.0)
    if 99.9 < shown < 100:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < shown < 0.1 else f"{shown:.3g} %"


def sureness(finding: Finding) -> str:
    """The confidence in a word."""
    if finding.bug == "unknown":
        return "not in the library"
    return next(
        (word for least, word in _SURE if finding.confidence >= least), "practically ruled out"
    )


def place(finding: Finding) -> str:
    """Where a bug is."""
    if finding.layer is None:
        return "a layer that is not known" if finding.bug == "unknown" else "the port as a whole"
    return "every layer" if finding.layer == EVERYWHERE else visible(finding.layer)


def remarks(report: Report) -> list[str]:
    """What was decided on the way, and in what the port differs without being another network."""
    return [visible(said) for said in (*report.notes, *(e.says for e in report.equivalences))]


def next_steps(report: Report) -> list[str]:
    """What to try, most useful first."""
    steps = [visible(finding.advice) for finding in report.diagnosis if finding.advice]
    if report.verdict == "disagree":
        first, bad = report.first_bad_layer, sum(not layer.ok for layer in report.layers)
        in_turn = report.unit == "layer" and first is not None
        if in_turn and bad > 1 and len(report.diagnosis) != 1:
            steps.append(
                f"mend {visible(first)} first, then verify again: every layer was judged by "
                "itself, so each one marked bad has something wrong of its own"
            )
        if not steps and len(report.layers) <= 1:
            steps.append("give the outputs of every layer, so that the bug can be named")
        elif not steps:
            steps.append("compare the layer's weights and geometry")
    elif report.verdict == "cannot-judge":
        if not report.layers:
            steps.append("run the candidate by itself: it gave nothing that could be compared")
        if report.unit == "output":
            return steps
        steps.append(
            "give the outputs of every layer (stage0, stage1.0, ..., linear) and the batch that "
            "they belong to (--inputs)"
        )
    elif report.unit == "output":
        steps.append("keep it so: repvgg_ref.verify_op(...).raise_if_bad() is one line of a test")
    else:
        steps.append(
            "keep it so: the pytest fixture repvgg_oracle makes this check one line of the "
            "port's own tests"
        )
    return list(dict.fromkeys(steps))


def count(n: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
