"""`repvgg-ref demo`: the main job with no argument and no network."""

from __future__ import annotations

import time

import pytest

from tests.cli.runner import invoke


def test_demo_converts_checks_reads_and_compares_without_a_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setenv("COLUMNS", "80")
    started = time.process_time()
    shown = invoke(capsys, "demo")
    assert time.process_time() - started < 20
    assert (shown.code, shown.err) == (0, "")
    assert "fused = branches in every block" in shown.out
    assert "the fused model  agrees" in shown.out
    assert "disagrees; first bad layer stage2.1" in shown.out
    assert "is eps-outside-root" in shown.out
    for digit in range(10):
        assert f"{digit} = {digit} = {digit}" in shown.out
    assert shown.out.count("360 of 360 right") == 2
    assert "same answer on 360 of 360" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
