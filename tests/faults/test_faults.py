"""Every system call on files fails once: afterwards there is the old file or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import ROOT, environment
from tests.faults.injected import JOBS

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


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 19])
@pytest.mark.parametrize("job", JOBS)
def test_every_call_fails_once(job: str, every: int, shim: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.injected", job, str(tmp_path), str(every)],
        env=environment() | {"LD_PRELOAD": str(shim), "REPVGG_WORKERS": "threads"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["calls"] > 20
    assert told["wrong"] == []
    assert os.environ.get("LD_PRELOAD") != str(shim)
