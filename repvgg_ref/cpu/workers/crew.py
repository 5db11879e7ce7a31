"""Processes that run a plan together, because Python's threads stand in each other's way.

Between two NumPy calls a thread needs the interpreter lock. If the other one holds it, it sleeps;
being woken takes as long as a call.

So a *crew* is this process, at seat 0, and helpers, which hold the same plan and go through the
same stages (`Plan.run`, `Plan.follow`): each does its portion of a stage and waits for the others
at its end. Activations lie in memory that all see. To wait is to read a number until it changes;
helpers that have no plan to run sleep on a socket.

A helper is a fresh interpreter, no fork: it inherits no locks and none of the caller's memory. It
is told everything by messages of JSON, with arrays in anonymous files (`memfd_create`, Linux), and
ends when the caller does. An x86 processor makes stores visible in order without further ado, so
crews are for these.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.convolution.algorithms import Algorithm
from repvgg_ref.cpu.workers.helper import LONGEST
from repvgg_ref.cpu.workers.pool import OneAtATime
from repvgg_ref.cpu.workers.seats import Board, Seat
from repvgg_ref.errors import BackendError

WORKERS = "REPVGG_WORKERS"
MOST_SEATS = 16  # a helper takes some 40 MB
_PROGRAM = "from repvgg_ref.cpu.workers.helper import serve; serve()"


class CrewError(Exception):
    """A helper is gone, or could not do its part."""


def available(threads: int) -> bool:
    """Whether a crew of so many can be: Linux on x86, and ``REPVGG_WORKERS`` not "threads".

    And a Python to start, which the executable of a frozen or an embedding program is not.

    Raises
    ------
    BackendError
        If the variable is neither "threads" nor "processes".
    """
    asked = os.environ.get(WORKERS, "processes")
    if asked not in ("processes", "threads"):
        raise BackendError(
            f"{WORKERS} says who works", got=repr(asked), wanted="processes or threads"
        )
    return (
        asked == "processes"
        and 1 < threads <= MOST_SEATS
        and sys.platform == "linux"
        and platform.machine() == "x86_64"
        and not getattr(sys, "frozen", False)
        and Path(sys.executable or "").name.startswith("python")
    )


class Caller(Seat):
    """Seat 0."""

    def __init__(self, crew: Crew, plan: int, file: int) -> None:
        super().__init__(0, crew.seats, crew.board, file, crew.check)
        self.crew, self._plan = crew, plan
        weakref.finalize(self, crew.forget, plan).atexit = False

    def allocate(self, numbers: int, dtype: Any) -> Array:
        """As `Seat.allocate`; the file is not needed again."""
        found = super().allocate(numbers, dtype)
        os.close(self._file)
        return found

    @property
    def usable(self) -> bool:
        """Whether the crew is."""
        return self.crew.usable

    def call(self) -> None:
        """Let the helpers begin."""
        self.crew.tell({"do": "run", "plan": self._plan})

    @contextmanager
    def session(self) -> Iterator[None]:
        """For one caller at a time; leaving in the middle of a run makes the crew useless."""
        with self.crew.turns.session():
            try:
                yield
            except BaseException:
                self.crew.close()
                raise


class Crew:
    """The helpers of this process, who serve all its plans."""

    def __init__(self, seats: int) -> None:
        self.seats, self.turns = seats, OneAtATime()
        self._pid, self._plans = os.getpid(), count()
        file = os.memfd_create("repvgg-ref board")
        self.board = Board(file, 0, seats)
        self._helpers: list[tuple[subprocess.Popen[bytes], socket.socket]] = []
        for seat in range(1, seats):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._helpers.append((_start(seat, seats, file, theirs.fileno()), ours))
        os.close(file)
        self.closed = False
        atexit.register(self.close)

    def join(
        self,
        blocks: tuple[BlockSpec, ...],
        params: Mapping[str, Array],
        shape: tuple[int, ...],
        dtype: Any,
        algorithms: list[Algorithm],
        model: int,
    ) -> Caller:
        """Let the helpers make a plan, and this process's seat in it; arguments as for `Plan`.

        Plans with the same number `model` share packed weights.

        Raises
        ------
        CrewError
            If a helper is gone, or there is no memory to be had.
        """
        plan = next(self._plans)
        order = {
            "do": "plan",
            "plan": plan,
            "model": model,
            "blocks": [asdict(block) for block in blocks],
            "params": list(params),
            "shape": list(shape),
            "dtype": np.dtype(dtype).str,
            "algorithms": algorithms,
        }
        try:
            buffers, weights = (os.memfd_create(name) for name in ("plan", "weights"))
            with os.fdopen(weights, "wb") as file:
                for array in params.values():
                    np.save(file, array, allow_pickle=False)
                file.flush()
                self.tell(order, [buffers, weights])
        except OSError as error:
            raise CrewError(f"no memory can be shared: {error}") from error
        return Caller(self, plan, buffers)

    def tell(self, order: Mapping[str, Any], files: list[int] | None = None) -> None:
        """Send an order to every helper.

        Raises
        ------
        CrewError
            If they do not listen.
        """
        message = json.dumps(order).encode()
        if not self.usable or len(message) > LONGEST:
            raise CrewError(f"helper processes are not there, or told too much: {len(message)} B")
        try:
            for _, channel in self._helpers:
                socket.send_fds(channel, [message], files or [])
        except OSError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                for process, _ in self._helpers:
                    process.wait(1)
            self.check()
            raise CrewError(f"a helper process does not listen: {error}") from error

    def forget(self, plan: int) -> None:
        """Let the helpers drop a plan, if they are there."""
        with contextlib.suppress(CrewError):
            self.tell({"do": "drop", "plan": plan})

    def check(self) -> None:
        """Raise `CrewError` if a helper has ended."""
        for process, channel in self._helpers:
            if process.poll() is None:
                continue
            said = ""
            for _ in range(2):  # the first time we are told that it left orders unread
                with contextlib.suppress(OSError):
                    said = said or channel.recv(LONGEST).decode(errors="replace")
            raise CrewError(said or f"a helper process ended with code {process.returncode}")

    def use(self) -> tuple[float, int]:
        """Processor seconds of the helpers so far, and the most bytes they held beside ours."""
        with self.turns.session():
            self.tell({"do": "use"})
            self.board.meet(self.check)
        return self.board.told(0) / 1e9, self.board.told(1)

    @property
    def usable(self) -> bool:
        """Whether the helpers are there, and this process is no fork of the one that has them."""
        return not self.closed and self._pid == os.getpid()

    def close(self) -> None:
        """End the helpers."""
        if not self.usable:
            return
        self.closed = True
        for process, channel in self._helpers:
            channel.close()
            process.kill()
            process.wait()
        atexit.unregister(self.close)


_crews: dict[tuple[int, int], Crew] = {}


def crew(seats: int) -> Crew:
    """The crew of so many that this process has; made anew after it was closed, or after a fork.

    Raises
    ------
    CrewError
        If the processes cannot be started.
    """
    key = os.getpid(), seats
    if key not in _crews or _crews[key].closed:
        try:
            _crews[key] = Crew(seats)
        except OSError as error:
            raise CrewError(f"no helper process can be started: {error}") from error
    return _crews[key]


def use_of_helpers() -> tuple[float, int]:
    """Processor seconds and peak bytes (`Crew.use`) of all helpers of this process."""
    uses = [each.use() for each in _crews.values() if each.usable]
    return sum(seconds for seconds, _ in uses), sum(size for _, size in uses)


def _start(seat: int, seats: int, board: int, channel: int) -> subprocess.Popen[bytes]:
    numbers = map(str, (seat, seats, board, channel, os.getpid()))
    ours = Path(__file__).parents[3]  # first, so that the helper runs this very code
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, *numbers],
        pass_fds=(board, channel),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ours), *filter(None, sys.path)])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
