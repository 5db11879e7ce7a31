"""Contenders in turns on one device, timed by its own events: rounds of ratios, not one figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

Work = Callable[[], object]  # enqueues one batch or step on the current stream


def race(
    contenders: Mapping[str, Work], *, ours: str, items: int, rounds: int, turn_s: float
) -> dict[str, Any]:
    """Let each contender run for about `turn_s` seconds a round.

    Parameters
    ----------
    contenders : mapping
        A contender that fails is left out, with its error.
    ours : str
        Whose time the others' is divided by: ratios above 1 mean that ours is faster.
    items : int
        Images of one call.

    Returns
    -------
    dict
        For each: median milliseconds and images per second, milliseconds of every round, and the
        median, lowest and highest ratio.
    """
    found: dict[str, Any] = {}
    repeats: dict[str, int] = {}
    for name, work in contenders.items():
        try:
            for _ in range(3):
                work()
            once = _milliseconds(work, 2)
        except Exception as error:  # a broken peer must not end the race
            found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            continue
        repeats[name] = max(1, round(turn_s * 1000 / max(once, 1e-3)))
    times: dict[str, list[float]] = {name: [] for name in repeats}
    for number in range(rounds):
        names = list(repeats)
        for name in names if number % 2 == 0 else reversed(names):
            times[name].append(_milliseconds(contenders[name], repeats[name]))
    for name, each in times.items():
        middle = statistics.median(each)
        found[name] = {"ms": middle, "images_per_s": items / middle * 1000, "rounds_ms": each}
        if ours in times and name != ours:
            ratios = [theirs / mine for theirs, mine in zip(each, times[ours], strict=True)]
            found[name]["times_ours"] = {
                "median": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
    return found


def _milliseconds(work: Work, repeats: int) -> float:
    """Of one call, by events around `repeats` of them."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) / repeats
