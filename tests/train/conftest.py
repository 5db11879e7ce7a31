"""Trainings here draw no curves, which would take longer than they do; `test_curves` draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(folder: Path, records: Any, *, title: str) -> list[Path]:
        return []

    if request.node.path.name != "test_curves.py":
        monkeypatch.setattr("repvgg_ref.train.run.write_curves", nothing)
