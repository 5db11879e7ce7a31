"""From judged calls to a report on the operator, with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.operators.evidence import channel_axis
from repvgg_ref.oracle.operators.judge import Judged, OutputCheck
from repvgg_ref.oracle.operators.operator import Operator
from repvgg_ref.oracle.report import Finding, LayerReport, Report

_NOT_TESTED = (
    "not tested: other shapes, settings and values than those of the calls named here, and whether"
    " the same call gives the same twice"
)
_MOST_DIAGNOSED = 3  # calls that are explained


@dataclass(frozen=True, kw_only=True)
class OperatorReport(Report):
    """A `Report` on one operator: its layers are the operator's outputs, each at its worst call.

    Attributes
    ----------
    calls : tuple of str
        What the port was asked, in words.
    exact : bool or None
        Whether sums of small integers came out exact; None if none were asked.
    tests : mapping
        Output -> bias and variance of its errors as shares of what rounding can do, at the worst.
    detectable : mapping
        Output -> how small an error every one of half its numbers shows, relative to its channel.
    """

    unit: ClassVar[str] = "output"

    calls: tuple[str, ...] = ()
    exact: bool | None = None
    tests: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    detectable: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that ``repvgg-ref verify-op --json`` prints."""
        found = super().to_json()
        return found | {
            "operator": self.model,
            "calls": list(self.calls),
            "exact": self.exact,
            "tests": {name: dict(each) for name, each in self.tests.items()},
            "detectable": dict(self.detectable),
        }


@dataclass(frozen=True)
class Case:
    """A port that has answered, compared."""

    operator: Operator
    judged: list[Judged]
    name: str
    precision: Precision
    outputs: Sequence[str] | None
    notes: list[str]

    @property
    def checks(self) -> list[OutputCheck]:
        """Every output of every call."""
        return [check for each in self.judged for check in each.checks]

    @property
    def missing(self) -> list[str]:
        """Outputs that nobody gave, of those that are wanted."""
        absent = dict.fromkeys(name for each in self.judged for name in each.missing)
        return [n for n in absent if self.outputs is None or n in self.outputs]

    @property
    def is_exact(self) -> bool | None:
        """Whether all sums of integers came out as they must; None if there were none."""
        told = [check.exact for check in self.checks if check.exact is not None]
        return all(told) if told else None


def reported(case: Case) -> OperatorReport:
    """Judge, diagnose, and say it."""
    bad = [each for each in case.judged if each.bad]
    findings = _merged([each.findings() for each in bad[:_MOST_DIAGNOSED]])
    hidden = [] if bad else _hidden(case)
    layers = _layers(case, hidden)
    wrong = bool(bad or hidden)
    first = next((layer.name for layer in layers if not layer.ok), None)
    return OperatorReport(
        verdict="disagree" if wrong else "cannot-judge" if case.missing else "agree",
        reason=_reason(case, bad, findings or hidden),
        model=case.operator.name,
        candidate=case.name,
        precision=case.precision.name,
        layers=tuple(layers),
        diagnosis=tuple(findings or hidden),
        first_bad_layer=first if wrong else None,
        notes=tuple(dict.fromkeys([*case.notes, *([] if wrong else _notes(case)), _NOT_TESTED])),
        calls=tuple(each.call.label or "the arrays given" for each in case.judged),
        exact=case.is_exact,
        tests=_tests(case),
        detectable=_detectable(case),
    )


def _hidden(case: Case) -> list[Finding]:
    """Bugs within the bounds; on integers nothing can hide, short numbers hide roundings."""
    told = [each for each in case.judged if each.given and not each.missing]
    told = [each for each in told if each.call.label.startswith(("full", "running", "batch"))] or [
        each for each in told if not each.call.integers
    ]
    return _merged([each.hidden(len(told)) for each in told])


def _merged(found: list[list[Finding]]) -> list[Finding]:
    """Each bug once, those that explain most calls first; "unknown" only where nothing is named."""
    counts: dict[str, int] = {}
    first: dict[str, Finding] = {}
    for findings in found:
        for finding in findings:
            first.setdefault(finding.bug, finding)
            counts[finding.bug] = counts.get(finding.bug, 0) + 1
    named = {bug: finding for bug, finding in first.items() if bug != "unknown"}
    order = sorted(named or first, key=lambda bug: -counts[bug])
    return [first[bug] for bug in order][:5]


def _layers(case: Case, hidden: list[Finding]) -> list[LayerReport]:
    """Every output at its worst call, or the first that is wrong."""
    worst: dict[str, OutputCheck] = {}
    for check in case.checks:
        known = worst.get(check.name)
        if known is None or (known.is_sound and _badness(check) > _badness(known)):
            worst[check.name] = check  # of those that are wrong the first: integers tell most
    spoiled = {finding.layer for finding in hidden}
    found = []
    for name, check in worst.items():
        layer = check.layer
        note = layer.note or (check.regular.says if check.regular else "")
        if not check.is_sound and not note.endswith(check.call.label):
            note = f"{note + '; ' if note else ''}{check.call.label}"
        if name in spoiled:
            note = f"within its bound, but {hidden[0].bug} shows in it"
        values = {
            **{f.name: getattr(layer, f.name) for f in fields(layer)},
            "note": note,
            "ok": check.is_sound and name not in spoiled,
        }
        found.append(LayerReport(**values))
    return found


def _badness(check: OutputCheck) -> tuple[bool, float]:
    ratio = check.layer.ratio
    return not check.is_sound, float("inf") if np.isnan(ratio) else ratio


def _reason(case: Case, bad: list[Judged], findings: list[Finding]) -> str:
    says = findings[0].says if findings else ""
    if bad:
        check = bad[0].bad[0]
        layer = check.layer
        what = layer.note or (
            f"error {layer.max_error:.3g}, {layer.ratio:.3g} times its bound"
            if not layer.ok
            else "within its bound, but not by rounding"
        )
        where = f" ({check.call.label})" if check.call.label and not layer.note else ""
        return f"{check.name}: {what}{where}: {says}"
    if findings:
        return f"{findings[0].layer}: within its bound, but a bug shows in the errors: {says}"
    if case.missing:
        return f"not returned: {', '.join(case.missing)}; name the outputs to be judged to go on"
    used = max((check.layer.ratio for check in case.checks if not check.layer.note), default=0.0)
    exact = {True: ", sums of integers exact", False: ", sums of integers not exact", None: ""}
    tests = " and no test speaks against rounding" if _tests(case) else ""
    return (
        f"{len(case.judged)} calls are within their certified bounds (at most {used:.1%} of one is"
        f" used){exact[case.is_exact]}{tests}"
    )


def _notes(case: Case) -> list[str]:
    ways = {check.layer.note for check in case.checks if check.layer.ok and check.layer.note}
    found = [f"beyond the bound of sums, within that of {way}" for way in sorted(ways)]
    if case.is_exact is False and not ways:
        found.append("sums of small integers are inexact: products are not simply summed")
    directions = {c.direction for c in case.checks if c.direction and not c.tests.is_passed}
    return [*found, *(f"rounding is directed: {each}" for each in sorted(directions))]


def _tests(case: Case) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for check in case.checks:
        if check.tests.outputs:
            known = found.setdefault(check.name, {"bias": 0.0, "variance": 0.0})
            known["bias"] = max(known["bias"], check.tests.bias)
            known["variance"] = max(known["variance"], check.tests.variance)
    return found


def _detectable(case: Case) -> dict[str, float]:
    """The bound of half the outputs, relative to their channel's root mean square."""
    found: dict[str, float] = {}
    for each in case.judged:
        for name in each.given:
            right = each.certified[name]
            axis = channel_axis(name, right.value)
            others = tuple(a for a in range(right.value.ndim) if a != axis)
            size = np.sqrt(np.mean(right.value**2, axis=others, keepdims=True))
            relative = float(np.median(right.error / np.maximum(size, 1e-300)))
            found[name] = min(found.get(name, np.inf), relative)
    return found
