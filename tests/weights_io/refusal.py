"""What every refusal must look like: one clear line, within budget and memory, nothing run."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest

import weights_io
from weights_io import archive
from weights_io.budget import Budget

PEAK_BYTES = 64 << 20
CANARY = "tests.weights_io.canary"


def read_everything(data: bytes) -> object:
    """Open a file in memory, read every array of it, of modules too, and return the tree."""
    with weights_io.open_weights(BytesIO(data)) as archive:
        _read_arrays(archive.root)
        return archive.root


@contextmanager
def charged() -> Iterator[list[Budget]]:
    """Collect the budgets of the files that are opened meanwhile, refused ones too."""
    budgets: list[Budget] = []

    class Kept(Budget):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            budgets.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "Budget", Kept)
        yield budgets


def _read_arrays(node: object) -> None:
    if isinstance(node, weights_io.LazyArray):
        node.read()
    elif isinstance(node, weights_io.PickledModule):
        _read_arrays(node.arrays())
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
    with charged() as budgets, pytest.raises(error, match=match) as caught:
        read_everything(data)
    for budget in budgets:
        overdrawn = [field for field in budget.spent if budget.left(field) < 0]
        assert not overdrawn or isinstance(caught.value, weights_io.LimitError)
        assert len(overdrawn) < 2, "the first charge above a limit ends the reading"
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
