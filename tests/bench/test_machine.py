"""The machine's description, and who else was using it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from repvgg_ref.bench import machine as machine_module
from repvgg_ref.bench.machine import Watch, is_busy, machine, version

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/stat")


def test_the_description_has_no_gaps_on_linux() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert found["numpy"] == version("numpy")
    assert version("no-such-package") is None


def _spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@needs_linux
def test_our_own_work_and_our_childrens_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's counter is replaced by one that sees what we use, and two seconds more."""
    program = "import time\nwhile time.process_time() < 0.5: pass"
    extra = 0.0
    monkeypatch.setattr(
        machine_module, "_busy_seconds", lambda: machine_module._our_seconds() + extra
    )
    watch = Watch()
    began = time.monotonic()
    _spin(0.3)
    subprocess.run([sys.executable, "-c", program], check=True)
    assert watch.others() == 0
    extra = 2.0
    share = watch.others()
    assert share is not None
    cores = os.cpu_count() or 1
    assert share == pytest.approx(2 / ((time.monotonic() - began) * cores), rel=0.1)


@needs_linux
def test_the_machines_own_counter_sees_a_stranger() -> None:
    """A child that has not ended yet is none of ours."""
    watch = Watch()
    stranger = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.6)
        share = watch.others()
    finally:
        stranger.kill()
        stranger.wait()
    assert share is not None
    assert share > 0.02


def test_an_unknown_share_is_not_called_busy() -> None:
    assert [is_busy(share) for share in (None, 0.0, 0.04, 0.06, 1.0)] == [False] * 3 + [True] * 2


def test_kernels_that_the_environment_chose_are_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenBLAS held to an older processor's kernels halves the speed; figures must say so."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert machine()["blas_pinned"] == "Haswell"
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert machine()["blas_pinned"] is None
