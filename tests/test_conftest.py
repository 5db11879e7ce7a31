"""What a push leaves out: the same in one process and in several, and nothing with --every-case."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = """
import time

import numpy
import pytest
from hypothesis import given, strategies as st

@pytest.mark.few
@pytest.mark.parametrize("a", "abcd")
@pytest.mark.parametrize("b", "xyz")
def test_grid(a, b, record_property):
    record_property("grid", a + b)

@pytest.mark.few(3)
@pytest.mark.parametrize("n", range(9))
def test_line(n, record_property):
    record_property("line", numpy.int64(n))

@pytest.mark.slow
def test_slow(record_property):
    record_property("slow", "ran")

def test_dear(record_property):
    record_property("dear", "ran")
    deadline = time.process_time() + 0.6
    while time.process_time() < deadline:
        pass

@given(st.integers())
def test_drawn(number):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite of its own, under this one's rules."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_families.py").write_text(FAMILIES)
    (tmp_path / "costs.json").write_text('{"test_families.py::test_dear": 0.6}')
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    few: n\n    slow: s\n")
    return tmp_path


def run(folder: Path, *options: str) -> tuple[list[str], str]:
    """What the tests counted, and all that was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "no:repvgg_ref"]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^(?:dear|grid|line|slow): \w+$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.few(1)
@pytest.mark.parametrize("processes", ["0", "2"])
def test_few_of_many_hold_every_value_and_the_others_can_be_had(
    folder: Path, processes: str
) -> None:
    counted, printed = run(folder, "-n", processes)
    grid = [line[-2:] for line in counted if line.startswith("grid")]
    assert len(grid) == 4
    assert {pair[0] for pair in grid} == set("abcd")
    assert {pair[1] for pair in grid} == set("xyz")
    assert counted[4:] == ["line: 0", "line: 4", "line: 8"]
    assert (
        "left out: 14 of 21 cases of families marked few, 1 dear tests (--dear), 1 slow ones"
        in printed
    )
    assert "8 passed" in printed.splitlines()[-1]

    # All cases, without those that have passed.
    counted, printed = run(folder, "-n", processes, "--every-case", "--not-yet-passed")
    assert len(counted) == 23 - 7
    assert "left out" not in printed
    assert "17 passed" in printed.splitlines()[-1], "and those whose examples are drawn"


@pytest.mark.few(1)
@pytest.mark.parametrize("processes", ["0", "2"])
def test_what_is_dear_is_measured(folder: Path, processes: str) -> None:
    (folder / "costs.json").unlink()
    counted, _ = run(folder, "-n", processes, "--measure-costs")
    assert counted[0] == "dear: ran", "nothing is known to be dear"
    assert list(json.loads((folder / "costs.json").read_text())) == ["test_families.py::test_dear"]
    assert "dear: ran" not in run(folder)[0]
    assert "dear: ran" in run(folder, "--dear")[0]


def test_every_test_that_is_said_to_be_dear_exists() -> None:
    for test in json.loads((ROOT / "tests" / "costs.json").read_text()):
        file, _, name = test.partition("::")
        assert f"def {name.rpartition('::')[2]}(" in (ROOT / file).read_text(), test


def test_a_case_that_is_named_runs(folder: Path) -> None:
    assert run(folder, "test_families.py::test_slow")[0] == ["slow: ran"]
