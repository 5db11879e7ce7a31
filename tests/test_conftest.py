"""What a push leaves out: the same in one process and in several, and nothing with --every-case."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = """
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

@given(st.integers())
def test_drawn(number):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite of its own, under this one's rules."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_families.py").write_text(FAMILIES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    few: n\n    slow: s\n")
    return tmp_path


def run(folder: Path, *options: str) -> tuple[list[str], str]:
    """What the tests counted, and all that was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "no:repvgg_ref"]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^(?:grid|line|slow): \w+$", done.stdout, re.MULTILINE), done.stdout


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
    assert "few of many: 7 of 21 cases of the families marked so; 1 slow tests left out" in printed
    assert "8 passed" in printed.splitlines()[-1]

    # All cases, without those that have passed.
    counted, printed = run(folder, "-n", processes, "--every-case", "--not-yet-passed")
    assert len(counted) == 22 - 7
    assert "few of many" not in printed
    assert "16 passed" in printed.splitlines()[-1], "and those whose examples are drawn"


def test_a_case_that_is_named_runs(folder: Path) -> None:
    assert run(folder, "test_families.py::test_slow")[0] == ["slow: ran"]
