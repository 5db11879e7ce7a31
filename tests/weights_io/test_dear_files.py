"""No small file costs much, whatever it holds: neither read nor refused."""

from __future__ import annotations

import inspect
import time
import tracemalloc
from collections.abc import Callable

import pytest

import weights_io
from tests.weights_io import dear_files, dear_parts
from tests.weights_io.refusal import read_everything

SECONDS = 4.0  # of processor time: the dearest takes 0.6 on an idle machine, a flood minutes
PEAK_BYTES = 100 << 20

FILES: dict[str, Callable[[], bytes]] = {
    name: make
    for name, make in inspect.getmembers(dear_files, inspect.isfunction)
    if make.__module__ == dear_files.__name__ and not name.startswith("_")
} | {**dear_parts.PICKLES, **dear_parts.CONTAINERS}


def _try_to_read(data: bytes) -> None:
    try:
        read_everything(data)
    except weights_io.ReportedError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 600


@pytest.mark.few(2)
@pytest.mark.parametrize("case", FILES)
def test_a_file_made_to_be_dear_is_read_or_refused_at_once(case: str) -> None:
    data = FILES[case]()
    assert len(data) <= 1 << 20
    started = time.process_time()
    _try_to_read(data)
    assert time.process_time() - started < SECONDS
    tracemalloc.start()
    try:
        _try_to_read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES
