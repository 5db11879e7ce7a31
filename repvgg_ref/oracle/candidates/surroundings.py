"""What a port may change for its whole process, kept apart from what everybody else there sees."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class Surroundings:
    """Floating-point errors, random states, warnings, folder, environment, signals: the port's.

    Inside `entered` the process has what the port left there last; outside it has its own. So a
    port goes on where it stopped, and neither the oracle nor its caller notices it.
    """

    def __init__(self) -> None:
        self._theirs = _taken()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let the port run here."""
        ours = _taken()
        _put(self._theirs)
        try:
            yield
        finally:
            self._theirs = _taken()
            _put(ours)


def _taken() -> list[Any]:
    return [take() for take, _ in _STATES]


def _put(states: list[Any]) -> None:
    for (_, put), state in zip(_STATES, states, strict=True):
        put(state)


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return None


def _go_to(folder: Path | None) -> None:
    if folder is not None and folder != _folder():
        with contextlib.suppress(OSError):
            os.chdir(folder)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update({n: value for n, value in wanted.items() if os.environ.get(n) != value})


def _set_filters(wanted: list[Any]) -> None:
    if warnings.filters != wanted:
        warnings.filters[:] = wanted  # type: ignore[index]
        # What was shown or silenced is remembered by the version of the filters.
        getattr(warnings, "_filters_mutated", lambda: None)()


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_handlers(wanted: Mapping[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set them, so the port could not either
    for number, handler in wanted.items():
        if handler is not None and signal.getsignal(number) != handler:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, handler)


def _set_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


_STATES: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (np.geterr, lambda state: _ignored(np.seterr(**state))),
    (np.geterrcall, lambda state: _ignored(np.seterrcall(state))),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
    (lambda: list(warnings.filters), _set_filters),
    (_folder, _go_to),
    (lambda: dict(os.environ), _set_environment),
    (_handlers, _set_handlers),
    (lambda: (sys.stdout, sys.stderr), _set_streams),
)


def _ignored(_: object) -> None:
    """For setters that return what was set before."""
