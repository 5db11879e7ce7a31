"""Runs the command in this process (fast) or in its own (true), and makes checkpoints for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from repvgg_ref_cli.main import main

from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import Model
from tests.models.small import SMALL, distinct_model

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON object that must be all of stdout."""
        assert self.out.endswith("}\n")
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    def error_line(self) -> str:
        """The one line that must be all of stderr, with exit code 2 and no result on stdout.

        Where JSON was asked for, stdout holds one object that says the same.
        """
        assert self.code == 2, self
        if self.out:
            told = self.json()["error"]
            assert (self.err, told["exit_code"]) == (f"error: {told['message']}\n", 2)
        assert self.err.startswith("error: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert self.err.removesuffix("\n").isprintable()
        return self.err


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run ``repvgg-ref arguments`` in this process."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def environment() -> dict[str, str]:
    """This process's environment, with the project's packages on the path."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}


def run_python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def small_model(name: str = "plain") -> Model:
    return distinct_model(SMALL[name], dtype="float32")


def save_small(path: Path, name: str = "plain") -> Path:
    """A training checkpoint of a small network, in the container that the suffix says."""
    save(small_model(name), path)
    return path
