"""A crew that is interrupted, or refused what it asks for, loses no descriptor and no process."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from repvgg_ref.cpu.workers import crew as crews
from repvgg_ref.cpu.workers import process as processes
from repvgg_ref.cpu.workers.crew import available
from repvgg_ref.cpu.workers.process import CrewError

pytestmark = pytest.mark.skipif(not available(2), reason="crews need Linux on x86")

WATCHED = {processes.__file__, crews.__file__}


def open_descriptors() -> list[str]:
    gc.collect()
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return sorted(found)


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def start_and_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", ("signal", "pause"))
    crew = crews.crew(2)
    crew.join((), {"weight": np.zeros(10, np.float32)}, (1, 3, 8, 8), np.float32, [], 0)
    crew.close()


def lost(act: Callable[[], None]) -> tuple[list[str], list[str]]:
    """What is open, and who lives, after `act` that was not before."""
    crews._crews.clear()
    before, lived = Counter(open_descriptors()), Counter(children())
    act()
    while crews._crews:
        crews._crews.popitem()[1].close()
    return (
        list((Counter(open_descriptors()) - before).elements()),
        list((Counter(children()) - lived).elements()),
    )


class InterruptAt:
    """Ctrl-C at the n-th line of the crew's code that is run."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # closed by its owner's end, and it is
@pytest.mark.few(4)
@pytest.mark.parametrize("line", range(1, 110, 2))
def test_ctrl_c_anywhere(line: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(InterruptAt(line))
            try:
                start_and_join(monkeypatch)
            finally:
                sys.settrace(None)

    assert lost(act) == ([], [])


FAULTS = [
    (os, "memfd_create"),
    (socket, "socketpair"),
    (subprocess, "Popen"),
    (socket, "send_fds"),
    (np, "save"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize(("module", "name"), FAULTS, ids=[name for _, name in FAULTS])
def test_what_the_system_refuses(
    module: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(module, name), iter(range(1, 100))

    def refuse(*args: Any, **settings: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args, **settings)

    monkeypatch.setattr(module, name, refuse)

    def act() -> None:
        with contextlib.suppress(CrewError):
            start_and_join(monkeypatch)

    assert lost(act) == ([], [])
