"""What reading a file costs: processor time and memory at its peak, beside what it may cost."""

from __future__ import annotations

import re
import signal
import time
import tracemalloc
from types import FrameType
from typing import NamedTuple

import weights_io
from tests.weights_io.refusal import read_everything

# A file of up to 1 MB may cost 0.5 s and 100 MB; no file is free, so each has 64 KiB on top.
SECONDS_PER_BYTE = 0.5e-6
PEAK_PER_BYTE = 100
FREE_BYTES = 1 << 16

MOST_SECONDS = 1.0  # a reading is broken off here: it is dear whatever would come
BROKEN_OFF = "broken off"
_TRACED = 4  # times slower at most while memory is traced


class Cost(NamedTuple):
    """The cost of one file."""

    size: int
    seconds: float
    peak: int  # bytes
    ending: str  # how the reading ended: "read", or an error without its numbers and names

    @property
    def of_time(self) -> float:
        """Time per byte over the time per byte that is allowed."""
        return self.seconds / (SECONDS_PER_BYTE * (self.size + FREE_BYTES))

    @property
    def of_memory(self) -> float:
        """Memory per byte over the memory per byte that is allowed."""
        return self.peak / (PEAK_PER_BYTE * (self.size + FREE_BYTES))

    @property
    def fitness(self) -> float:
        """How many times dearer than allowed the file is."""
        return max(self.of_time, self.of_memory)


class _TooDearError(BaseException):
    """No reader may catch it."""


def measure(data: bytes, most_seconds: float = MOST_SECONDS) -> Cost:
    """Read a file to its last array twice: once timed, once with its memory traced."""
    seconds, ending = _read(data, most_seconds)
    if ending == BROKEN_OFF:
        return Cost(len(data), seconds, 0, ending)
    tracemalloc.start()
    try:
        _read(data, _TRACED * most_seconds)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Cost(len(data), seconds, peak, ending)


def _read(data: bytes, most_seconds: float) -> tuple[float, str]:
    before = signal.signal(signal.SIGPROF, _break_off)
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, most_seconds)
    try:
        read_everything(data)
        ending = "read"
    except weights_io.ReportedError as error:
        ending = re.sub(r"\S*\d\S*|\S{30,}", "_", error.what)[:60]
    except _TooDearError:
        ending = BROKEN_OFF
    except Exception as error:
        ending = f"uncaught {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return time.process_time() - started, ending


def _break_off(_signal: int, _frame: FrameType | None) -> None:
    raise _TooDearError
