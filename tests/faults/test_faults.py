"""Every system call on files fails once: afterwards there is the old file or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runner import ROOT, environment
from tests.faults.descriptors import ALL
from tests.faults.injected import JOBS
from tests.studies.faults.descriptor_study import RESULTS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc"
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"], check=True
    )
    return built


def told_by(module: str, shim: Path, *arguments: object) -> dict[str, Any]:
    """What a program of `tests.faults` says that was started with the shim."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)],
        env=environment() | {"LD_PRELOAD": str(shim), "REPVGG_WORKERS": "threads"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert os.environ.get("LD_PRELOAD") != str(shim)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 97])
@pytest.mark.parametrize("job", JOBS)
def test_every_call_fails_once(job: str, every: int, shim: Path, tmp_path: Path) -> None:
    told = told_by("injected", shim, job, tmp_path, every)
    assert told["calls"] > 20
    assert told["wrong"] == []


@pytest.mark.parametrize("faults", [10, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("job", ALL)
def test_no_descriptor_is_lost(job: str, faults: int, shim: Path, tmp_path: Path) -> None:
    told = told_by("descriptors", shim, job, tmp_path, faults, 0)
    assert told["faults"] == faults
    assert told["lost"] == []
    assert told["raised"] == {}


def test_the_study_that_is_committed_lost_none() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(found) == set(ALL)
    assert all(each["lost"] == [] and each["faults"] for each in found.values())
