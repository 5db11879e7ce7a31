"""The message of a failed assertion."""

from __future__ import annotations

import pytest

from repvgg_ref.oracle.render import assertion_text
from tests.oracle.render.reports import REPORTS, agreeing, disagreeing, unjudged


def test_a_disagreement_tells_the_whole_story() -> None:
    text = " ".join(assertion_text(disagreeing(), page="out/page.html").split())
    for said in (
        "port.onnx: disagrees (reference: RepVGG-A0)",
        "why stage2.1: error 0.00042, 42 times its bound",
        "first bad stage2.1 (6 bad of 23)",
        "diagnosis eps-value in stage2.1: batch norm adds eps = 0.001",
        "measured 0.0009999851 ± 7.7e-09; explains > 99.9 % of the difference",
        "practically certain (100 %)",
        "the same on this data: eps-everywhere, eps-of-keras",
        "identity-missing in every layer",
        "try next set eps of every batch norm to the reference's",
        "note matched by position",
        "report out/page.html",
    ):
        assert said in text


def test_what_cannot_be_judged_is_told_with_the_reason() -> None:
    text = assertion_text(unjudged())
    assert "cannot judge" in text.splitlines()[0]
    assert "the candidate failed (got ImportError)" in text
    assert "report" not in [line.split()[0] for line in text.splitlines() if line]


def test_agreement_has_a_message_too() -> None:
    assert "agrees" in assertion_text(agreeing())


@pytest.mark.parametrize("name", list(REPORTS))
def test_every_line_is_printable(name: str) -> None:
    lines = assertion_text(REPORTS[name]).split("\n")
    assert len(lines) > 3
    assert all(line.isprintable() for line in lines)
