"""SIGINT and SIGTERM as a question: the loop finishes its step, saves, and leaves."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

_SAME = 1.0  # seconds


class StopSignals:
    """While entered, the first signal is remembered; a later one ends the program at once.

    What comes within a second is the same signal: a terminal and a launcher may both send it.

    Attributes
    ----------
    number : int
        Of the signal that came; SIGTERM's until then, which is what other ranks report.
    """

    def __init__(self) -> None:
        self.number: int = signal.SIGTERM
        self._came: float | None = None
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._came is not None

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._came is None:
            self._came, self.number = now, number
        elif now - self._came > _SAME:
            raise SystemExit(128 + number)
