"""What every refusal must look like: one clear line, soon, in little memory, nothing run."""

from __future__ import annotations

import sys
import time
import tracemalloc
from io import BytesIO

import pytest

import weights_io

SECONDS = 6.0  # of processor time, ten times what the dearest takes here: a flood takes minutes
PEAK_BYTES = 64 << 20
CANARY = "tests.weights_io.canary"


def read_everything(data: bytes) -> object:
    """Open a file in memory, read every array of it, and return the tree."""
    with weights_io.open_weights(BytesIO(data)) as archive:
        _read_arrays(archive.root)
        return archive.root


def _read_arrays(node: object) -> None:
    if isinstance(node, weights_io.LazyArray):
        node.read()
    elif isinstance(node, dict):
        for value in node.values():
            _read_arrays(value)
    elif isinstance(node, list | tuple):
        for value in node:
            _read_arrays(value)


def assert_refused(
    data: bytes,
    match: str,
    error: type[weights_io.ReportedError] = weights_io.WeightsFileError,
) -> str:
    """Assert that reading `data` raises one clean error; return its message."""
    started = time.process_time()
    with pytest.raises(error, match=match) as caught:
        read_everything(data)
    assert time.process_time() - started < SECONDS
    assert _peak_of_refusal(data) < PEAK_BYTES
    message = str(caught.value)
    assert message.isprintable(), "one line without escapes"
    assert len(message) < 600
    assert caught.value.__cause__ is None
    assert CANARY not in sys.modules, "the file made us import something"
    return message


def _peak_of_refusal(data: bytes) -> int:
    tracemalloc.start()
    try:
        read_everything(data)
    except weights_io.ReportedError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak
