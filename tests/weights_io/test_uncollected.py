"""While a file is read nobody looks for cyclic garbage, and afterwards all is as it was."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest

import weights_io
from weights_io import uncollected as room
from weights_io.uncollected import uncollected


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_off_in_the_block_and_as_it_was_behind_it(is_on: bool) -> None:
    (gc.enable if is_on else gc.disable)()
    with uncollected(), uncollected():
        assert not gc.isenabled()
    assert gc.isenabled() == is_on


def test_an_error_or_an_interrupt_ends_the_pause() -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), uncollected():
            raise error
        assert gc.isenabled()


@pytest.mark.parametrize("place", ["begin", "end"])
def test_an_interrupt_before_or_behind_the_block_ends_the_pause(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one comes that arrives while the collector is switched."""
    real, calls = getattr(room._pause, place), []

    def interrupted(reader: object) -> None:
        calls.append(reader)
        if place == "begin":
            real(reader)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(reader)

    monkeypatch.setattr(room._pause, place, interrupted)
    with pytest.raises(KeyboardInterrupt), uncollected():
        pass
    assert gc.isenabled()


def test_threads_that_read_at_the_same_time_share_one_pause() -> None:
    seen: list[bool] = []
    inside, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with uncollected():
            inside.set()
            may_end.wait(10)
        seen.append(gc.isenabled())

    thread = threading.Thread(target=other)
    with uncollected():
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()  # the other still reads
    may_end.set()
    thread.join()
    assert seen == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_no_readers_of_its_parent() -> None:
    with uncollected():
        if (pid := os.fork()) == 0:
            os._exit(0 if gc.isenabled() and not room._pause._readers else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not gc.isenabled()


def test_a_file_is_read_without_a_search_for_garbage() -> None:
    found: list[str] = []

    def seen(phase: str, _: dict[str, Any]) -> None:
        found.append(phase)

    data = pickle.dumps([[] for _ in range(20_000)], 2)
    gc.callbacks.append(seen)
    try:
        weights_io.open_weights(BytesIO(data)).close()
        assert len(found) <= 2  # one when it is on again; thirty otherwise
        assert gc.isenabled()
        with pytest.raises(weights_io.WeightsFileError):
            weights_io.open_weights(BytesIO(data[:-1]))
        assert gc.isenabled()
    finally:
        gc.callbacks.remove(seen)
