"""How much work a call takes, counted in calls of functions: the same on every machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from repvgg_ref.errors import ReportedError

_FEW = 300


def calls_of(run: Callable[[], object]) -> int:
    """Count the functions that are called meanwhile, built-in ones and other threads' too."""
    events: list[None] = []

    def seen(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            events.append(None)

    old = sys.getprofile()
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        run()
    except ReportedError:
        pass
    finally:
        sys.setprofile(old)
        threading.setprofile(None)
    return len(events)


def growth(run: Callable[[int], object], size: int) -> float:
    """How much more the step from 2 to 4 sizes takes than that from 1 to 2: 2 if it is linear.

    What is the same for every size drops out; of quadratic work it is 4. Steps of fewer calls than
    a few hundred tell nothing and count as those.
    """
    calls_of(lambda: run(size))  # what is cached is cached
    first, second, third = (calls_of(partial(run, n)) for n in (size, 2 * size, 4 * size))
    return (third - second) / max(second - first, _FEW)
