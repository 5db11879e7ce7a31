"""Choosing the backend: an explicit "cupy" says what is missing, "auto" takes it where it works."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repvgg_ref.backends import backend_ops
from repvgg_ref.cpu import NUMPY
from repvgg_ref.errors import BackendError, MissingExtraError
from tests.cli.runner import invoke
from tests.gpu.conftest import device_named
from tests.gpu.fake_cupy import installed

DIGITS = Path("repvgg_ref/data")
PREDICT = ("predict", "--weights", str(DIGITS / "digits-train.pth"))
IMAGE = str(DIGITS / "digit-7-test001.png")


@pytest.fixture
def working() -> Iterator[None]:
    with device_named("fake with cuDNN"):
        yield


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CuPy is there, a driver is not."""

    def count() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    with installed() as cupy:
        runtime: Any = cupy.cuda.runtime
        monkeypatch.setattr(runtime, "getDeviceCount", count)
        monkeypatch.setattr(runtime, "driverGetVersion", lambda: 0)
        yield


def test_an_explicit_cupy_never_falls_back(
    no_driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match="no NVIDIA driver is loaded"):
        backend_ops("cupy")
    shown = invoke(capsys, *PREDICT, "--backend", "cupy", IMAGE)
    assert shown.code == 2
    assert shown.out == ""
    assert shown.err.startswith("error: no NVIDIA driver is loaded")
    assert "--backend numpy" in shown.err
    assert len(shown.err.splitlines()) == 1


def test_the_variable_is_as_explicit(no_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPVGG_BACKEND", "cupy")
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        backend_ops()


def test_auto_is_numpy_where_no_gpu_computes(no_driver: None) -> None:
    assert backend_ops("auto") is NUMPY


def test_auto_is_cupy_where_a_gpu_has_computed(working: None) -> None:
    assert backend_ops("auto").name == "cupy-fp32"
    assert backend_ops("auto", "float16").name == "cupy-fp16"
    assert backend_ops("cupy") is backend_ops("cupy")


def test_predict_on_the_device_says_what_it_says_on_the_host(
    working: None, capsys: pytest.CaptureFixture[str]
) -> None:
    here = invoke(capsys, *PREDICT, IMAGE)
    there = invoke(capsys, *PREDICT, "--backend", "cupy", IMAGE)
    assert (there.code, there.err) == (0, "")
    assert there.out == here.out


def test_an_arithmetic_that_is_none_is_refused(working: None) -> None:
    from repvgg_ref.gpu import cupy_ops

    wrong: Any = "fp8"
    with pytest.raises(BackendError, match="wanted fp32, tf32, bf16, fp16"):
        cupy_ops(wrong)


def test_bfloat16_without_its_package(working: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from repvgg_ref.gpu import cupy_ops

    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtraError, match="pip install ml_dtypes"):
        cupy_ops("bf16")


def test_doctor_shows_what_is_there(working: None, capsys: pytest.CaptureFixture[str]) -> None:
    checks = {check["name"]: check for check in invoke(capsys, "doctor", "--json").json()["checks"]}
    assert checks["backend cupy"]["status"] == "ok"
    assert checks["cupy"]["status"] == "ok"
    assert "Fake device on NumPy, compute capability 90" in checks["cupy"]["detail"]
    assert checks["cudnn"]["detail"].startswith("91002")


def test_doctor_shows_what_is_missing_with_the_command_that_mends_it(
    no_driver: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def without_cudnn(name: str, package: str | None = None) -> Any:
        return None if name == "cudnn" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_cudnn)
    checks = {check["name"]: check for check in invoke(capsys, "doctor", "--json").json()["checks"]}
    assert checks["backend cupy"]["status"] == "missing"
    assert "no NVIDIA driver is loaded" in checks["cupy"]["detail"]
    assert "--backend numpy" in checks["cupy"]["fix"]
    assert checks["cudnn"]["status"] == "missing"
    assert '-m pip install "repvgg-ref[cudnn' in checks["cudnn"]["fix"]
