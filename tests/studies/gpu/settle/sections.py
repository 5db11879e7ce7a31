"""Runs sections one after the other: each has its time, and none can stop the others."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

Found = dict[str, Any]


class Section(NamedTuple):
    """`run` fills the dict that it is given, so that what it found before a failure is kept."""

    name: str
    seconds: float
    run: Callable[[Found], None]


class OutOfTimeError(Exception):
    """A section used up its time."""


def run_sections(
    sections: Sequence[Section], *, out: Path, seconds: float, tell: Callable[[str], None]
) -> Found:
    """Run `sections` within `seconds` in all and write what they found to `out` after each."""
    end = time.monotonic() + seconds
    result: Found = {"sections": {}}
    for section in sections:
        left = end - time.monotonic()
        found: Found = {}
        result["sections"][section.name] = found
        if left < min(5.0, section.seconds):
            found["error"] = "not run: no time left"
        else:
            _run(section, found, min(section.seconds, left))
        tell(f"{section.name}: {found.get('error', 'done')} ({found.get('took_s', 0):.0f} s)")
        _write(out, result)
    result["ok"] = all("error" not in found for found in result["sections"].values())
    _write(out, result)
    return result


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the block after `seconds`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"its {seconds:.0f} s are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run(section: Section, found: Found, seconds: float) -> None:
    began = time.monotonic()
    try:
        with time_limit(seconds):
            section.run(found)
    except Exception as error:  # whatever it is, the other sections go on
        found["error"] = f"{type(error).__name__}: {error}"
        found["traceback"] = traceback.format_exc().splitlines()[-12:]
    found["took_s"] = round(time.monotonic() - began, 1)


def _write(out: Path, result: Found) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    part.replace(out)
