"""A progress bar on stderr, for work that turns out to take longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from repvgg_ref_cli.console import can_draw, console

_PATIENCE = 1.0  # seconds


class ProgressBar:
    """``bar(what, done, total)`` after every step; silent if stderr is no terminal.

    rich is imported only once a second has passed, so short work never pays for it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._wanted = can_draw(sys.stderr)
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps are behind us, `what` the last of them."""
        if not self._wanted or (self._bar is None and self._is_early()):
            return
        if self._bar is None:
            self._start(total)
        self._bar.update(self._task, completed=done, description=f"{self._title} {what}")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _is_early(self) -> bool:
        return time.monotonic() - self._started < _PATIENCE

    def _start(self, total: int) -> None:
        from rich.progress import Progress

        self._bar = Progress(console=console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._title, total=total)
        self._bar.start()
