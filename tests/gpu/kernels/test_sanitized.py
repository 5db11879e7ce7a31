"""All cases under address and undefined-behaviour sanitizers, in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import emulator

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("step", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_no_kernel_touches_what_is_not_its_own(step: int) -> None:
    # float16: vectors of eight, single elements, and float32 beside them
    done = _child("float16", "--step", str(step))
    assert (done.returncode, done.stdout.strip()) == (0, "all as it should be"), done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("convolution.cu", "start / stride < outputs ?", "true ?"),
        ("cross_entropy.cu", "warp < ROW_THREADS / 32", "warp <= ROW_THREADS / 32"),
    ],
)
def test_an_access_out_of_bounds_is_found(file: str, old: str, new: str) -> None:
    done = _child("float32", "--plant", file, old, new)
    assert done.returncode != 0
    assert done.stdout == ""  # it did not come to its end
    assert "heap-buffer-overflow" in done.stderr or "out of bounds" in done.stderr


def _child(*arguments: str) -> subprocess.CompletedProcess[str]:
    if (why := emulator.why_missing()) is not None:
        pytest.skip(why)
    asan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("g++ has no libasan: .cu files cannot be run under sanitizers")
    environment = os.environ | {
        "LD_PRELOAD": asan,  # it must come first in a process that is not built with it
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it likes
        emulator.SANITIZE: "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.kernels.everything", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
