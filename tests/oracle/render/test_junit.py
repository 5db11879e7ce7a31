"""JUnit XML: a CI server must not take anything but agreement for a pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from repvgg_ref.oracle.render import render_junit
from repvgg_ref.oracle.report import Report
from tests.oracle.render.reports import REPORTS, agreeing, disagreeing, hostile, unjudged

# The rules of the strictest schema in use (Ant's): children in this order; attributes, all
# required. "*" may be missing or repeated.
CHILDREN = {
    "testsuites": "testsuite",
    "testsuite": "properties testcase* system-out system-err",
    "properties": "property*",
    "property": "",
    "testcase": "(error|failure|skipped)?",
    "failure": "",
    "error": "",
    "system-out": "",
    "system-err": "",
}
ATTRIBUTES = {
    "testsuite": {
        "name": r"\S+( \S+)*",
        "package": r"\S+( \S+)*",
        "id": r"\d+",
        "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
        "hostname": r"\S+",
        "tests": r"\d+",
        "failures": r"\d+",
        "errors": r"\d+",
        "skipped": r"\d+",
        "time": r"\d+\.\d+",
    },
    "property": {"name": r"\S+( \S+)*", "value": ".*"},
    "testcase": {"name": r"\S+( \S+)*", "classname": r"\S+( \S+)*", "time": r"\d+\.\d+"},
    "failure": {"type": r"\S.*", "message": ".*"},
    "error": {"type": r"\S.*", "message": ".*"},
}


def suite(report: Report) -> Element:
    root = ElementTree.fromstring(render_junit(report))
    (found,) = root
    return found


def cases(report: Report) -> Iterator[tuple[str, str]]:
    """Name and outcome of every test."""
    for case in suite(report).iter("testcase"):
        yield case.attrib["name"], next((child.tag for child in case), "passed")


@pytest.mark.parametrize("name", list(REPORTS))
def test_it_follows_the_schema(name: str) -> None:
    for element in ElementTree.fromstring(render_junit(REPORTS[name])).iter():
        wanted = CHILDREN[element.tag].replace(" ", "").replace("testcase*", "(testcase)*")
        pattern = wanted.replace("property*", "(property)*")
        assert re.fullmatch(pattern, "".join(child.tag for child in element)), element.tag
        rules = ATTRIBUTES.get(element.tag, {})
        assert set(element.attrib) == set(rules)
        for attribute, rule in rules.items():
            assert re.fullmatch(rule, element.attrib[attribute]), (element.tag, attribute)


@pytest.mark.parametrize("name", list(REPORTS))
def test_its_counts_are_those_of_its_cases(name: str) -> None:
    found = suite(REPORTS[name])
    outcomes = [outcome for _, outcome in cases(REPORTS[name])]
    assert int(found.attrib["tests"]) == len(outcomes) == len(REPORTS[name].layers) + 1
    assert int(found.attrib["failures"]) == outcomes.count("failure")
    assert int(found.attrib["errors"]) == outcomes.count("error")
    assert int(found.attrib["skipped"]) == outcomes.count("skipped")


def test_every_layer_is_a_case_and_agreement_passes_them_all() -> None:
    report = agreeing()
    assert list(cases(report)) == [
        ("verdict", "passed"),
        *((layer.name, "passed") for layer in report.layers),
    ]


def test_a_disagreement_fails_the_verdict_and_each_bad_layer() -> None:
    report = disagreeing()
    outcomes = dict(cases(report))
    assert outcomes["verdict"] == "failure"
    for layer in report.layers:
        assert outcomes[layer.name] == ("passed" if layer.ok else "failure")
    failures = {f.attrib["type"] for f in suite(report).iter("failure")}
    assert failures == {"disagree", "eps-value", "unknown", "identity-missing"}
    without = suite(replace(report, diagnosis=()))
    assert {f.attrib["type"] for f in without.iter("failure")} == {"disagree", "bound"}


def test_what_cannot_be_judged_is_an_error_never_a_pass() -> None:
    assert list(cases(unjudged())) == [("verdict", "error")]
    (error,) = suite(unjudged()).iter("error")
    assert "the candidate failed" in error.attrib["message"]


def test_no_character_that_xml_forbids_and_no_markup_of_a_hostile_name() -> None:
    xml = render_junit(hostile())
    text = xml.decode("utf-8")
    assert not re.search(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    assert not re.search(r"&#(\d|x[0-9a-f]){1,4};", text.replace("&#10;", ""))
    assert {element.tag for element in ElementTree.fromstring(xml).iter()} <= set(CHILDREN)
    assert "\\x1b[31m" in text


def test_the_time_is_utc_without_a_zone() -> None:
    now = datetime(2024, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    xml = render_junit(agreeing(), now=now, seconds=1.5).decode()
    assert 'timestamp="2024-02-29T23:00:00"' in xml
    assert 'time="1.500"' in xml
    assert datetime.now(UTC).year >= 2024
