"""A report as JUnit XML, so that a CI server shows layers as tests.

Written for the strictest of the schemas in use (Apache Ant's, as published by Windy Road), which
the looser ones of Jenkins and Surefire contain. A verdict that is no "agree" is never a pass:
"disagree" is a failure, "cannot-judge" an error.
"""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

from repvgg_ref.oracle.render.assertion import assertion_text
from repvgg_ref.oracle.render.words import LOOKS, number, used, visible
from repvgg_ref.oracle.report import LayerReport, Report

_VERDICT = "verdict"


def render_junit(report: Report, *, now: datetime | None = None, seconds: float = 0.0) -> bytes:
    """One testsuite: a testcase a layer, and one for the verdict.

    Parameters
    ----------
    now : datetime, optional
        When it was verified; default now. Written as UTC.
    seconds : float
        How long it took.

    Returns
    -------
    bytes
        UTF-8 with an XML declaration; no character that XML 1.0 forbids.
    """
    failed = sum(not layer.ok for layer in report.layers)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": _token(f"repvgg-ref verify: {report.candidate}"),
            "package": "repvgg_ref",
            "id": "0",
            "timestamp": (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": "localhost",  # which machine it was is nobody's business
            "tests": str(len(report.layers) + 1),
            "failures": str(failed + (report.verdict == "disagree")),
            "errors": str(int(report.verdict == "cannot-judge")),
            "skipped": "0",
            "time": f"{seconds:.3f}",
        },
    )
    _properties(suite, report)
    _verdict(suite, report, seconds)
    for layer in report.layers:
        _layer(suite, report, layer)
    output = ElementTree.SubElement(suite, "system-out")
    output.text = _lines(assertion_text(report))
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml


def _properties(suite: ElementTree.Element, report: Report) -> None:
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("reference", report.model),
        ("candidate", report.candidate),
        ("precision", report.precision),
        ("verdict", report.verdict),
        ("first_bad_layer", report.first_bad_layer or ""),
        ("diagnosis", ", ".join(finding.bug for finding in report.diagnosis)),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": visible(value)})


def _verdict(suite: ElementTree.Element, report: Report, seconds: float) -> None:
    case = _case(suite, report, _VERDICT, seconds)
    if report.verdict == "agree":
        return
    kind = "error" if report.verdict == "cannot-judge" else "failure"
    message = f"{LOOKS[report.verdict].title}: {report.reason}"
    problem = ElementTree.SubElement(
        case, kind, {"type": report.verdict, "message": visible(message)}
    )
    problem.text = _lines(assertion_text(report))


def _layer(suite: ElementTree.Element, report: Report, layer: LayerReport) -> None:
    case = _case(suite, report, layer.name, 0.0)
    if layer.ok:
        return
    message = layer.note or f"error {number(layer.max_error)} is {used(layer)} its bound"
    here = sorted(report.diagnosis, key=lambda finding: finding.layer != layer.name)
    bugs = [finding.bug for finding in here if finding.is_in(layer.name)]
    problem = ElementTree.SubElement(
        case, "failure", {"type": _token(bugs[0] if bugs else "bound"), "message": visible(message)}
    )
    problem.text = _lines(
        f"largest error {number(layer.max_error)}, certified bound {number(layer.bound)}, "
        f"error / likely bound {number(layer.likely_ratio)}, "
        f"inherited {number(layer.inherited)}"
    )


def _case(
    suite: ElementTree.Element, report: Report, name: str, seconds: float
) -> ElementTree.Element:
    attributes = {
        "name": _token(name),
        "classname": _token(f"repvgg_ref.{report.model}"),
        "time": f"{seconds:.3f}",
    }
    return ElementTree.SubElement(suite, "testcase", attributes)


def _token(text: str) -> str:
    """Schema type xs:token: no space at the ends and no two together; not empty."""
    return " ".join(visible(text).split()) or "-"


def _lines(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))
