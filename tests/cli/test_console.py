"""What terminals get: no escapes where they are unwelcome, ASCII in the C locale, 40 columns."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from repvgg_ref_cli import console
from repvgg_ref_cli.console import Fitting, is_plain
from rich.console import Console
from rich.table import Table
from rich.text import Text

from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.integer.page import spark
from tests.cli.runner import environment, invoke

LOCALE = ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "PYTHONUTF8", "NO_COLOR", "TERM")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOCALE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({}, False),
        ({"TERM": "xterm", "LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, False),
        ({"NO_COLOR": ""}, False),
        ({"NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, True),
        ({"LANG": "C"}, True),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, True),
        ({"LC_ALL": "de_DE.UTF-8", "LANG": "C"}, False),
    ],
)
def test_who_wants_no_escapes(
    settings: dict[str, str], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert is_plain() is plain


def on_a_terminal(settings: dict[str, str], *arguments: object) -> bytes:
    """What a terminal of 40 columns gets, stdout and stderr together."""
    pty = pytest.importorskip("pty", reason="the system has no pseudo-terminals")
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in environment().items() if name not in LOCALE}
    with subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref_cli", *map(str, arguments)],
        env=clean | {"TERM": "xterm", "LANG": "C.UTF-8", "COLUMNS": "40"} | settings,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux's way to say that all has been read
                break
            if not part:
                break
            shown += part
        process.wait(60)
    os.close(ours)
    return shown


VERIFY = ("verify", "--reference", MODEL_PATH, "--candidate", MODEL_PATH)


def test_a_terminal_gets_colours() -> None:
    assert b"\x1b[" in on_a_terminal({}, "inspect", MODEL_PATH)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"NO_COLOR": "1"}, VERIFY),
        ({"NO_COLOR": "1"}, ("doctor",)),
        ({"TERM": "dumb"}, ("table",)),
        ({"LC_ALL": "C"}, VERIFY),
        ({"LC_ALL": "C"}, ("inspect", MODEL_PATH)),
        ({"LC_ALL": "C"}, ("advise", "--in", MODEL_PATH)),
    ],
    ids=lambda given: next(iter(given)),
)
def test_no_escape_is_printed_where_none_is_wanted(
    settings: dict[str, str], arguments: tuple[object, ...]
) -> None:
    shown = on_a_terminal(settings, *arguments)
    assert len(shown) > 20
    assert b"\x1b" not in shown
    if "LC_ALL" in settings:
        assert shown.isascii()
        assert b"\\u" not in shown


def test_signs_have_a_spelling_in_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    console.prepare_streams()
    stream.reconfigure(errors=console._ERRORS)
    stream.write("1 \N{PLUS-MINUS SIGN} 2 \N{MULTIPLICATION SIGN} \u4e2d \ud800 \N{EM DASH}")
    stream.flush()
    assert stream.buffer.getvalue() == b"1 +/- 2 x \\u4e2d \\ud800 -"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_bars_are_drawn_in_ascii_where_they_cannot_be_shown(encoding: str) -> None:
    bars = spark(np.logspace(0, -4, 60), 60)
    assert len(set(bars)) == 8
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console.prepare_streams()
    stream.reconfigure(errors=console._ERRORS)
    stream.write(bars)
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")
    assert len(shown) == len(bars)
    assert len(set(shown)) == 8
    assert "\\" not in shown


def drawn(width: int, drop: tuple[int, ...] = ()) -> list[str]:
    table = Table(caption="said below")
    table.add_column("layer", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("largest error", justify="right", no_wrap=True)
    table.add_column("note")
    table.add_row("stage1.0", "ok", "1.25e-07", "")
    table.add_row(Text("stage2.11"), "BAD", "0.5", "first; ten words that do not fit in a line")
    stream = io.StringIO()
    Console(file=stream, width=width).print(Fitting(table, drop))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_table_that_fits_is_a_table() -> None:
    assert sum("│" in line for line in drawn(60)) >= 2


@pytest.mark.parametrize("width", [20, 30, 40])
def test_one_that_does_not_says_all_its_cells(width: int) -> None:
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert text == (
        "stage1.0 ok, largest error 1.25e-07 stage2.11 BAD, largest error 0.5, note first; "
        "ten words that do not fit in a line said below"
    )


def test_columns_that_mean_nothing_alone_are_left_out() -> None:
    assert "largest error" not in " ".join(drawn(24, (2,)))


def test_the_table_of_networks_fits_forty_columns_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = invoke(capsys, "table").out.splitlines()
    assert max(map(len, lines)) <= 40
    rows = {cells[0]: cells[1:] for line in lines if (cells := line.split())}
    assert rows["RepVGG-A0"] == ["9.10", "8.30", "1.4", "0.7"]
    assert rows["RepVGG-B3g4"] == ["83.82", "75.62", "16.1", "8.4"]
    assert "…" not in "".join(lines)


def test_a_report_in_forty_columns_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = invoke(capsys, *VERIFY)
    assert max(map(len, shown.out.splitlines())) <= 40
    assert "…" not in shown.out
    assert "\nstage2.1\n" in shown.out


@pytest.mark.parametrize("arguments", [("table",), VERIFY], ids=lambda a: a[0])
def test_a_reader_that_leaves_early_ends_what_rich_writes(arguments: tuple[object, ...]) -> None:
    """Rich's own way is exit code 1, which here means that a port disagrees."""
    with subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref_cli", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_nobody_left_to_hear_of_an_error_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "repvgg_ref_cli", "inspect", "nowhere", "--json"],
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: nowhere: cannot be opened")
    assert done.stderr.count(b"\n") == 1
