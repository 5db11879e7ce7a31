"""What is missing is said, each with the command that mends it; simulated, no GPU needed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from repvgg_ref.errors import BackendError
from tests.gpu.fake_cudnn import make_cudnn
from tests.gpu.fake_cupy import installed


class CUDARuntimeError(RuntimeError):
    """Named as CuPy's."""


@pytest.fixture
def probe() -> Iterator[Any]:
    """The module, on a machine where everything works; each test breaks one thing."""
    with installed(make_cudnn()):
        import repvgg_ref.gpu.probe

        yield repvgg_ref.gpu.probe


def distributions(*names: str) -> Callable[[], list[Any]]:
    return lambda: [SimpleNamespace(metadata={"Name": name}) for name in ("numpy", *names)]


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception, *, driver: int = 0) -> None:
    """CuPy loads, and its first call to the device raises `error`."""

    def count() -> int:
        raise error

    runtime = sys.modules["cupy"].cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceCount", count)
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: driver)
    monkeypatch.setattr(importlib.metadata, "distributions", distributions("cupy-cuda12x"))


def test_a_device_that_works_is_named(probe: Any) -> None:
    device = probe.require_device()
    assert device.name == "Fake device on NumPy"
    assert (device.compute_capability, device.driver) == ("90", 13000)
    assert probe.find_cudnn() == (91002, None, None)


def test_no_cupy(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", distributions())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="CuPy is not installed") as caught:
        probe.require_device()
    assert 'pip install "repvgg-ref[cupy12]"' in str(caught.value)


def test_several_cupys(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, ImportError("cannot import name 'core'"))
    two = distributions("cupy-cuda12x", "cupy_cuda13x")
    monkeypatch.setattr(importlib.metadata, "distributions", two)
    with pytest.raises(BackendError, match="several CuPy packages") as caught:
        probe.require_device()
    assert "got cupy-cuda12x, cupy-cuda13x" in str(caught.value)
    assert "uninstall -y cupy-cuda12x cupy-cuda13x &&" in str(caught.value)


def test_several_cupys_that_work_are_left_alone(
    probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = distributions("cupy-cuda12x", "cupy_cuda13x")
    monkeypatch.setattr(importlib.metadata, "distributions", two)
    assert probe.require_device().name


INSUFFICIENT = CUDARuntimeError(
    "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
)


def test_no_driver(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, INSUFFICIENT, driver=0)
    with pytest.raises(BackendError, match="no NVIDIA driver is loaded") as caught:
        probe.require_device()
    assert "--backend numpy" in str(caught.value)


def test_a_driver_that_is_too_old(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, INSUFFICIENT, driver=11080)
    with pytest.raises(BackendError, match="driver is too old") as caught:
        probe.require_device()
    assert "CUDA 11.8" in str(caught.value)
    assert 'install "cupy-cuda11x[ctk]"' in str(caught.value)


def test_no_gpu(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    with pytest.raises(BackendError, match="the NVIDIA driver sees no GPU") as caught:
        probe.require_device()
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)


def test_a_device_count_of_zero(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(BackendError, match="the NVIDIA driver sees no GPU"):
        probe.require_device()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: cannot open shared object"),
        ImportError("libcublas.so.12: cannot open shared object file: No such file"),
        RuntimeError('cannot open source file "cuda_fp16.h"'),
    ],
    ids=["nvrtc", "cublas", "headers"],
)
def test_missing_cuda_libraries(
    error: Exception, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, error)
    with pytest.raises(BackendError, match="CUDA libraries that CuPy needs are missing") as caught:
        probe.require_device()
    assert 'install "cupy-cuda12x[ctk]"' in str(caught.value)


def test_a_kernel_that_computes_wrongly(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy: Any = sys.modules["cupy"]
    monkeypatch.setattr(cupy, "arange", lambda n: cupy.zeros(n))
    with pytest.raises(BackendError, match="the GPU computes wrongly"):
        probe.require_device()


def test_anything_else_is_passed_on(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, RuntimeError("the moon is full"))
    with pytest.raises(BackendError, match=r"CuPy does not work here .*the moon is full"):
        probe.require_device()


def test_no_cudnn_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed():
        from repvgg_ref.gpu import probe

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(importlib.metadata, "distributions", distributions("cupy-cuda13x"))
        with pytest.warns(probe.NoCudnnWarning, match=r"pip install \"repvgg-ref\[cudnn13\]\""):
            assert not probe.use_cudnn()
        assert not probe.use_cudnn()  # a second warning would be an error here


def test_a_frontend_without_cudnn(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    monkeypatch.setattr(sys.modules["cudnn"], "backend_version", missing)
    found = probe.find_cudnn()
    assert found.version is None
    assert "cuDNN itself does not load: Unable to find symbol" in found.missing


def test_a_cudnn_that_is_too_old(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["cudnn"], "backend_version", lambda: 8907)
    assert "too old: 8907" in probe.find_cudnn().missing
