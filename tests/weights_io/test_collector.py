"""While a file is read garbage is looked for rarely, but it is; and afterwards all is as it was."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest

import weights_io
from weights_io import collector as room
from weights_io.collector import RARELY, seldom_collected

BEFORE = (600, 11, 12)


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*BEFORE)
    yield
    gc.set_threshold(*before)
    gc.enable()


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_comes_rarely_in_the_block_and_as_before_behind_it(is_on: bool) -> None:
    (gc.enable if is_on else gc.disable)()
    with seldom_collected(), seldom_collected():
        assert gc.get_threshold() == (RARELY, *BEFORE[1:])
        assert gc.isenabled() == is_on
    assert gc.get_threshold() == BEFORE
    assert gc.isenabled() == is_on


def test_a_collector_that_comes_as_rarely_or_never_is_left_alone() -> None:
    for threshold in (0, RARELY, RARELY + 1):
        gc.set_threshold(threshold)
        with seldom_collected():
            assert gc.get_threshold()[0] == threshold
        assert gc.get_threshold()[0] == threshold


@pytest.mark.parametrize(
    ("choose", "threshold"),
    [(gc.disable, 600), (lambda: gc.set_threshold(900, 5), 900), (lambda: gc.set_threshold(0), 0)],
)
def test_what_the_user_chooses_while_a_file_is_read_stays(
    choose: Callable[[], None], threshold: int
) -> None:
    """In another thread, or in the file object's own `readinto`, as here."""

    class Chooses(BytesIO):
        def readinto(self, buffer: Any) -> int:
            choose()
            return super().readinto(buffer)

    weights_io.open_weights(Chooses(pickle.dumps({"a": [1]}, 2))).close()
    assert gc.get_threshold()[0] == threshold
    assert gc.isenabled() == (choose is not gc.disable)


def test_an_error_or_an_interrupt_ends_the_pause() -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), seldom_collected():
            raise error
        assert gc.get_threshold() == BEFORE


@pytest.mark.parametrize("place", ["begin", "end"])
def test_an_interrupt_before_or_behind_the_block_ends_the_pause(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one comes that arrives while the collector is told."""
    real, calls = getattr(room._pause, place), []

    def interrupted(reader: object) -> None:
        calls.append(reader)
        if place == "begin":
            real(reader)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(reader)

    monkeypatch.setattr(room._pause, place, interrupted)
    with pytest.raises(KeyboardInterrupt), seldom_collected():
        pass
    assert gc.get_threshold() == BEFORE


def test_the_pause_of_one_thread_is_not_prolonged_by_another() -> None:
    inside, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with seldom_collected():
            inside.set()
            may_end.wait(10)

    thread = threading.Thread(target=other)
    with seldom_collected():
        thread.start()
        assert inside.wait(10)
    assert gc.get_threshold() == BEFORE  # though the other still reads
    may_end.set()
    thread.join()
    assert gc.get_threshold() == BEFORE


def test_garbage_that_others_make_is_found_while_a_file_is_read() -> None:
    found: list[str] = []
    gc.callbacks.append(lambda phase, _: found.append(phase))
    try:
        with seldom_collected():
            for _ in range(2 * RARELY):
                cycle: list[Any] = []
                cycle.append(cycle)
            assert "stop" in found
    finally:
        gc.callbacks.pop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_no_reader_of_its_parent() -> None:
    with seldom_collected():
        if (pid := os.fork()) == 0:
            os._exit(0 if gc.get_threshold() == BEFORE and room._pause._reader is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert gc.get_threshold()[0] == RARELY


def test_a_file_is_read_with_few_searches_for_garbage() -> None:
    found: list[str] = []

    def seen(phase: str, _: dict[str, Any]) -> None:
        found.append(phase)

    data = pickle.dumps([[] for _ in range(20_000)], 2)
    gc.callbacks.append(seen)
    try:
        weights_io.open_weights(BytesIO(data)).close()
        assert len(found) <= 2  # one when it is as before again; thirty otherwise
        assert gc.get_threshold() == BEFORE
        with pytest.raises(weights_io.WeightsFileError):
            weights_io.open_weights(BytesIO(data[:-1]))
        assert gc.get_threshold() == BEFORE
    finally:
        gc.callbacks.remove(seen)
