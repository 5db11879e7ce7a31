"""Numbers and judgements in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repvgg_ref.oracle.render.words import (
    estimate,
    next_steps,
    number,
    percent,
    state,
    sureness,
    used,
    visible,
)
from repvgg_ref.oracle.report import Finding
from tests.oracle.render.reports import (
    HOSTILE,
    INFINITY,
    NAN,
    agreeing,
    disagreeing,
    layer,
    unjudged,
)


def finding(value: float | None, error: float | None = None, **more: object) -> Finding:
    return replace(Finding("b", "l", value, 0.5, 0.5, standard_error=error), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.0009999851315730677, 7.7e-9, "0.0009999851 ± 7.7e-09"),
        (1.0016123, 3e-4, "1.00161 ± 0.0003"),
        (1.0, 5.0, "1 ± 5"),
        (-2.34567, 0.1, "-2.35 ± 0.1"),
        (0.0, 0.1, "0 ± 0.1"),
        (1e-3, 1e-30, "0.001 ± 1e-30"),
        (0.25, None, "0.25"),
        (0.25, 0.0, "0.25"),
        (0.25, NAN, "0.25"),
        (None, 0.1, ""),
        (NAN, 0.1, ""),
        (INFINITY, 0.1, ""),
    ],
)
def test_an_estimate_has_the_digits_that_its_error_allows(
    value: float | None, error: float | None, said: str
) -> None:
    assert estimate(finding(value, error)) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, "100 %"),
        (0.99999, "> 99.9 %"),
        (0.983, "98.3 %"),
        (0.0004, "< 0.1 %"),
        (0.0, "0 %"),
        (-0.3, "0 %"),
        (NAN, "-"),
    ],
)
def test_a_percentage_is_never_rounded_to_certainty(share: float, said: str) -> None:
    assert percent(share) == said


def test_states_and_use_of_the_bound() -> None:
    judged = [
        layer("a", 0.123),
        layer("a", 3.0),
        layer("a", 3.0, ok=False),
        layer("a", 0.5, ok=False),
        layer("a", NAN, ok=False),
        layer("a", INFINITY, ok=False),
        layer("a", 0.9999),
    ]
    assert [state(x) for x in judged] == ["ok", "excused", "bad", "hidden", "void", "bad", "ok"]
    times = "\N{MULTIPLICATION SIGN}"
    assert [used(x) for x in judged] == [
        "12 %",
        f"3 {times}",
        f"3 {times}",
        "50 %",
        "NaN",
        f"\N{INFINITY} {times}",
        "100 %",
    ]
    assert used(layer("a", NAN, ok=False, note="shape 1x2 instead of 2x2")) == "-"


def test_numbers() -> None:
    values = (None, NAN, INFINITY, -INFINITY, 0.0, 1.23456e-7)
    assert [number(v) for v in values] == ["-", "NaN", "\u221e", "-\u221e", "0", "1.23e-07"]


@pytest.mark.parametrize(
    ("confidence", "word"),
    [
        (1.0, "practically certain"),
        (0.9, "likely"),
        (0.5, "possible"),
        (0.1, "unlikely"),
        (1e-30, "practically ruled out"),
        (NAN, "practically ruled out"),
    ],
)
def test_confidence_in_a_word(confidence: float, word: str) -> None:
    assert sureness(finding(None, confidence=confidence)) == word
    assert sureness(finding(None, bug="unknown", confidence=confidence)) == "not in the library"


def test_what_does_not_print_is_escaped_and_nothing_is_lost() -> None:
    shown = visible(HOSTILE)
    assert shown.isprintable()
    assert all(escape in shown for escape in (r"\x00", r"\x1b", r"\u202e", r"\ud800"))
    assert visible("Größe 漢字") == "Größe 漢字"


def test_the_next_steps_are_the_findings_then_what_follows_from_the_verdict() -> None:
    steps = next_steps(disagreeing())
    assert steps[:3] == [
        "set eps of every batch norm to the reference's",
        "add it",
        "see the pattern",
    ]
    assert steps[3].startswith("mend stage2.1 first")
    assert "run the candidate by itself" in next_steps(unjudged())[0]
    assert "repvgg_oracle" in next_steps(agreeing())[0]
    assert all(next_steps(replace(disagreeing(), diagnosis=())))
