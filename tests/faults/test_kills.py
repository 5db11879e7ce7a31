"""Killed with SIGKILL at any moment, a job leaves the old file or the new one, and no litter.

What a killed process has left is gone after the next run, which makes what it would have made, to
the bit. A few kills here; two hundred of each job with ``--every-case``; a thousand, with what they
found, in ``tests/studies/faults``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import ROOT, environment
from tests.faults.killed import JOBS
from tests.studies.faults.kill_study import AT_CALLS, RESULTS

_CALM = {"REPVGG_WORKERS": "threads", "REPVGG_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills, as Linux does")


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("job", JOBS)
def test_kills(job: str, kills: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed", job, str(tmp_path), str(kills), "0"],
        env=environment() | _CALM,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == kills
    assert told["wrong"] == []


def test_the_study_that_is_committed_found_nothing_wrong() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(found) == {*JOBS, *(job + AT_CALLS for job in JOBS)}
    assert all(each["wrong"] == [] and each["kills"] for each in found.values())
