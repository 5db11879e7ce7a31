"""SIGINT and SIGTERM as a question: the loop finishes its step, saves, and leaves."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """While entered, the first signal is remembered; a second one ends the program at once.

    Attributes
    ----------
    number : int
        Of the signal that came; SIGTERM's until then, which is what other ranks report.
    """

    def __init__(self) -> None:
        self.number: int = signal.SIGTERM
        self._came = False
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._came

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
        if self._came:
            raise SystemExit(128 + number)
        self._came, self.number = True, number
