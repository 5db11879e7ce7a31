"""Devices for the tests: the fake one, with and without cuDNN, and a real one where there is one.

``pytest tests/gpu --require-gpu`` turns each skip of a test marked `gpu` into a failure.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gpu import emulator
from tests.gpu.fake_cudnn import make_cudnn
from tests.gpu.fake_cupy import installed


@dataclass(frozen=True)
class UnderTest:
    """The device that a test runs on; `cupy` and `cupyx` are the modules."""

    name: str
    cupy: Any
    cupyx: Any

    @property
    def is_fake(self) -> bool:
        return self.name.startswith("fake")

    @contextmanager
    def never_waits(self) -> Iterator[None]:
        """Fail where the host would wait for the device in the block.

        CuPy deprecates its detector, as it does not see what waits outside CuPy.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "cupyx.allow_synchronize", UserWarning)
            with self.cupyx.allow_synchronize(False):
                yield

    @property
    def has_cudnn(self) -> bool:
        from repvgg_ref.gpu import find_cudnn

        return find_cudnn().version is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="tests marked gpu fail instead of skipping"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    wanted = item.config.getoption("--require-gpu", default=False)
    if wanted and report.skipped and item.get_closest_marker("gpu") is not None:
        report.outcome = "failed"
        report.longrepr = f"--require-gpu: {report.longrepr}"
    return report


@pytest.fixture(
    scope="module",
    params=[
        "fake without cuDNN",
        "fake with cuDNN",
        pytest.param("GPU", marks=pytest.mark.gpu),
    ],
)
def device(request: pytest.FixtureRequest) -> Iterator[UnderTest]:
    """Each device in turn; `repvgg_ref.gpu` is to be imported inside the test."""
    with device_named(request.param) as found:
        yield found


@contextmanager
def device_named(name: str) -> Iterator[UnderTest]:
    """The device `name`, or a skip that says why there is none."""
    if name == "GPU":
        _skip_without_gpu()
        with warnings.catch_warnings():  # tests of the products on a GPU without cuDNN are welcome
            warnings.simplefilter("ignore")
            _look_for_cudnn()
        yield UnderTest(name, __import__("cupy"), __import__("cupyx"))
        return
    if why := emulator.why_missing():
        pytest.skip(f"the fake device cannot compile kernels: {why}")
    with installed(make_cudnn() if name.endswith("with cuDNN") else None) as cupy:
        if not name.endswith("with cuDNN"):
            _hear_that_there_is_no_cudnn()
        yield UnderTest(name, cupy, sys.modules["cupyx"])


def _skip_without_gpu() -> None:
    from repvgg_ref.errors import BackendError
    from repvgg_ref.gpu import require_device

    try:
        require_device()
    except BackendError as error:
        pytest.skip(f"no GPU: {error}")


def _hear_that_there_is_no_cudnn() -> None:
    """The warning comes once a process; here it is expected."""
    from repvgg_ref.gpu import NoCudnnWarning

    with pytest.warns(NoCudnnWarning):
        _look_for_cudnn()


def _look_for_cudnn() -> None:
    from repvgg_ref.gpu.probe import use_cudnn

    use_cudnn()
