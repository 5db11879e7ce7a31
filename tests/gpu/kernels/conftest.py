"""The kernels run on the emulator, under the fake CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gpu import emulator, fake_cupy


@pytest.fixture(scope="module")
def cupy() -> Iterator[Any]:
    """A CuPy whose kernels run on the CPU."""
    if (why := emulator.why_missing()) is not None:
        pytest.skip(why)
    with fake_cupy.installed() as module:
        yield module
