"""Progress shows on a terminal, after a second, on stderr; nowhere else."""

from __future__ import annotations

import io
import sys

import pytest
from repvgg_ref_cli import progress
from repvgg_ref_cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, patience: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar("fusing") as bar:
        for done in range(1, 4):
            bar(f"stage{done}", done, 3)
    return stream.getvalue()


def test_long_work_on_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fusing stage3" in shown(monkeypatch, Terminal(), patience=0.0)


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), patience=60.0) == ""


def test_a_pipe_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), patience=0.0) == ""


def test_the_bar_ends_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)

    def work() -> None:
        with ProgressBar("fusing") as bar:
            bar("stage0", 1, 2)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        work()
    hidden, visible = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().rfind(visible) > terminal.getvalue().rfind(hidden) >= 0
