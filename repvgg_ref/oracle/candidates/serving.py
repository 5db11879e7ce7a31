"""What a child process of the oracle's is asked through: folders on a disk, their names on a line.

The child reads names of folders, one a line, on its standard input. A folder may hold x.npy; the
child adds 0.npy, 1.npy, ... and, last of all, result.json, and says so by the same line on its
standard output. What it works for has neither of the two streams. Nothing of the oracle's is loaded
here, so that a child may be light.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

TASK, INPUT, RESULT = "task.json", "x.npy", "result.json"
# A batch, if one came, to arrays and what else there is to tell.
Work = Callable[[Any], tuple[Iterable[Any], dict[str, Any]]]


def own_streams() -> tuple[IO[str], IO[str]]:
    """Standard input and output for ourselves alone; the port gets the null device for both."""
    mine = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    return mine


def serve(folder: Path, requests: IO[str], answers: IO[str], work: Work) -> None:
    """Answer every request by what `work` gives."""
    for line in requests:
        place = folder / line.strip()
        given = place / INPUT
        arrays, told = work(np.load(given, allow_pickle=False) if given.exists() else None)
        for i, array in enumerate(arrays):
            np.save(place / f"{i}.npy", array, allow_pickle=False)
        (place / RESULT).write_text(json.dumps(told), "utf-8")
        answers.write(line)
        answers.flush()


def ended() -> NoReturn:
    """End at once: threads and atexit handlers of a stranger's library may hang."""
    sys.stderr.flush()
    os._exit(0)
