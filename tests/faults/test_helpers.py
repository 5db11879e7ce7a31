"""Whatever befalls helper processes, their caller has its results, and loses nothing.

A few of the cases of `attacks` here, all of them with ``--every-case``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from repvgg_ref.cpu.workers.crew import WORKERS, available
from tests.cli.runner import ROOT
from tests.faults.attacks import CASES, Case

RESULTS = ROOT / "tests" / "studies" / "faults" / "results" / "helpers.json"

pytestmark = pytest.mark.skipif(not available(2), reason="crews need Linux on x86")

# Without a site or the environment a Python finds neither us nor NumPy: its program says where.
_PROGRAM = """import sys
sys.path[:0] = {ahead!r}
sys.path += {behind!r}
from tests.faults.helped import main
main({name!r}, {report!r})
"""


def attacked(name: str, folder: Path) -> dict[str, Any]:
    """What became of a case."""
    case, report = CASES[name], folder / "report.json"
    here = folder / "here"
    here.mkdir(mode=0o777)
    folder.chmod(0o777)
    program = _PROGRAM.format(
        ahead=[str(ROOT), str(ROOT / "cli")],
        behind=[sysconfig.get_path("purelib")],
        name=name,
        report=str(report),
    )
    known = {WORKERS: "processes", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/cli"}
    env = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
    env = {key: value for key, value in (env | known | case.env).items() if key not in case.unset}
    done = subprocess.run(
        [sys.executable, *case.flags, "-c", program],
        cwd=here,
        env=env,
        preexec_fn=partial(_prepare, case, here),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert report.exists(), f"code {done.returncode}: {done.stderr[-3000:]}"
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def _prepare(case: Case, here: Path) -> None:
    for number in case.closed:
        os.close(number)
    if case.gone:
        here.rmdir()
    for what, most in case.limits.items():
        resource.setrlimit(what, (most, most))


def judge(case: Case, found: dict[str, Any]) -> list[str]:
    """What is wrong with it."""
    wrong = list(found["wrong"])
    if len(set(found["warnings"])) > 1:  # each engine says it once
        wrong.append(f"{len(found['warnings'])} warnings: {found['warnings']}")
    # On a machine that is busy with other things an interpreter may take so long to start.
    told = [said for said in found["warnings"] if case.warns or "has not answered" not in said]
    if case.warns is not None and case.warns != bool(told):
        wrong.append(f"warned of {found['warnings']}")
    return wrong


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * each.waits) for name, each in CASES.items()],
)
def test_helpers_are_replaced(name: str, tmp_path: Path) -> None:
    found = attacked(name, tmp_path)
    assert judge(CASES[name], found) == []
    assert found["calls"]


def test_the_study_that_is_committed_found_nothing_wrong() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(found) == set(CASES)
    assert all(each["wrong"] == [] and each["calls"] for each in found.values())
