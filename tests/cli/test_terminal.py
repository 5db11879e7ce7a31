"""A report on a terminal."""

from __future__ import annotations

import io

import pytest
from repvgg_ref_cli.terminal import render_terminal
from rich.console import Console

from repvgg_ref.oracle.report import Report
from tests.oracle.render.reports import REPORTS, agreeing, disagreeing, hostile, unjudged


def shown(report: Report, width: int = 80, *, colours: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=colours, highlight=False, legacy_windows=False
    )
    console.print(render_terminal(report))
    return stream.getvalue()


def test_every_layer_has_its_line_with_the_error_on_a_scale() -> None:
    rows = {
        words[0]: words
        for line in shown(disagreeing(), 120).splitlines()
        if (words := line.split())
    }
    assert rows["stage0"][1:3] == ["ok", "....o....|...."]
    assert rows["stage2.1"][1:3] == ["BAD", ".........|.X.."]
    assert rows["stage2.2"][1:3] == ["BAD", ".........|...X"]
    assert rows["stage3.1"][1:3] == ["ok", ".........|o..."]
    assert rows["stage3.3"][1:3] == ["BAD", ".....X...|...."]
    assert rows["stage3.5"][1:3] == ["BAD", ".........|...?"]
    assert rows["stage3.9"][1:3] == ["ok", "o........|...."]
    assert "first" in rows["stage2.1"]


def test_the_verdict_comes_last_and_says_what_to_do() -> None:
    text = shown(disagreeing())
    assert text.index("eps-value in stage2.1") < text.index("DISAGREES: port.onnx")
    assert "measured 0.0009999851 ± 7.7e-09" in text
    assert "-> set eps of every batch norm to the reference's" in text
    assert "AGREES: port.onnx" in shown(agreeing())
    assert "CANNOT JUDGE: port:run" in shown(unjudged())


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", list(REPORTS))
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    assert max(map(len, shown(REPORTS[name], width).splitlines())) <= width


def test_names_are_neither_markup_nor_escapes() -> None:
    text = shown(hostile(), 300)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text
    assert "{{ 7 * 7 }}" in text
    tagged = Report("cannot-judge", "[red]why[/red] [/bold]", "m", "[link=x]c[/link]", "fp32")
    assert "[red]why[/red] [/bold]" in shown(tagged)
    assert "[link=x]c[/link]" in shown(tagged)


def test_verdicts_differ_in_colour_where_there_is_any() -> None:
    for report, colour in ((agreeing(), 32), (disagreeing(), 31), (unjudged(), 33)):
        assert f"\x1b[{colour}m" in shown(report, colours=True)
