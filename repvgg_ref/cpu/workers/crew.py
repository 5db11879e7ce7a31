"""Processes that run a plan together, because Python's threads stand in each other's way.

Between two NumPy calls a thread needs the interpreter lock. If the other one holds it, it sleeps;
being woken takes as long as a call.

So a *crew* is this process, at seat 0, and helpers, which hold the same plan and go through the
same stages (`Plan.run`, `Plan.follow`): each does its portion of a stage and waits for the others
at its end. Activations lie in memory that all see. To wait is to read a number until it changes;
helpers that have no plan to run sleep on a socket.

A helper is a fresh interpreter, no fork: it inherits no locks and none of the caller's memory. It
is told everything by messages of JSON, with arrays in anonymous files (`memfd_create`, Linux), and
ends when the caller does; `process` starts and watches it. An x86 processor makes stores visible in
order without further ado, so crews are for these.

A helper takes longer to start than a small network to compute. Until it is there the caller does
its portions, too (`StandIn`): the same products in the same order, so results are the same bits.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from io import BufferedWriter, FileIO
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.budget import Choice
from repvgg_ref.cpu.workers.pool import OneAtATime, Stage
from repvgg_ref.cpu.workers.process import (
    CrewError,
    HelperProcess,
    order_of,
    shared_file,
    uninterrupted,
)
from repvgg_ref.cpu.workers.seats import Board, Seat
from repvgg_ref.errors import BackendError

WORKERS = "REPVGG_WORKERS"
MOST_SEATS = 16  # a helper takes some 40 MB


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


class Follower(Protocol):
    """A plan at another seat than the caller's."""

    def parts(self) -> Iterator[None]:
        """Its part of a run, stage by stage."""


class Caller(Seat):
    """Seat 0."""

    def __init__(self, crew: Crew, plan: int, file: FileIO) -> None:
        super().__init__(0, crew.seats, crew.board, file, crew.check)
        self.crew, self._plan = crew, plan
        weakref.finalize(self, file.close)
        weakref.finalize(self, crew.forget, plan).atexit = False

        self._absent: list[Follower] = []
        self._turns: list[Iterator[None]] = []

    def fileno(self) -> int:
        """Of the plan's file, until `allocate`."""
        return self._file.fileno()

    @property
    def usable(self) -> bool:
        """Whether the crew is."""
        return self.crew.usable

    def allocate(self, numbers: int, dtype: Any) -> Array:
        """As `Seat.allocate`; raises `CrewError` if there is no memory to be had."""
        try:
            self.memory = super().allocate(numbers, dtype)
            return self.memory
        except OSError as error:  # also a limit on the size of files, which it counts as
            raise CrewError(f"no memory can be shared: {error}") from error

    def stand_in(self, make: Callable[[StandIn], Follower]) -> None:
        """Until the helpers are there, go through the plans that `make` makes for their seats."""
        if not self.crew.answered:
            seats, turns = self.crew.seats, self.crew.turns
            self._absent = [
                make(StandIn(seat, seats, self.memory, turns)) for seat in range(1, seats)
            ]

    def call(self) -> None:
        """Let the helpers begin, or who stands in for them."""
        if self._absent and self.crew.answered:
            self._absent = []
        self._turns = [each.parts() for each in self._absent]
        if not self._turns:
            self.crew.greet()
            self.crew.tell({"do": "run", "plan": self._plan})

    def run(self, stage: Stage) -> None:
        """As `Seat.run`."""
        if not self._turns:
            super().run(stage)
            return
        self.portion(stage)
        for turn in self._turns:
            next(turn)

    @contextmanager
    def session(self) -> Iterator[None]:
        """For one caller at a time; leaving in the middle of a run makes the crew useless."""
        with self.crew.turns.session():
            try:
                yield
            except BaseException:
                self.crew.close()
                raise


class StandIn(Seat):
    """The seat of a helper that is not there yet, as its caller takes it: for nobody to wait."""

    def __init__(self, seat: int, seats: int, memory: Array, turns: OneAtATime) -> None:
        self.seat, self._memory, self._turns = seat, memory, turns
        self.threads = self.processes = seats

    def allocate(self, numbers: int, dtype: Any) -> Array:
        """What the caller has allocated for the same plan."""
        return self._memory

    def run(self, stage: Stage) -> None:
        """Do this seat's portion."""
        self.portion(stage)

    def session(self) -> AbstractContextManager[None]:
        """The caller's."""
        return self._turns.session()


class Crew:
    """The helpers of this process, who serve all its plans."""

    def __init__(self, seats: int) -> None:
        self.seats, self.turns = seats, OneAtATime()
        self._pid, self._plans, self.closed = os.getpid(), count(), False
        self._helpers: list[HelperProcess] = []
        with shared_file("repvgg-ref board") as file:
            self.board = Board(file, 0, seats)
            try:
                for seat in range(1, seats):
                    self._helpers.append(HelperProcess(seat, seats, file))
            except BaseException:
                self.close()
                raise
        atexit.register(self.close)

    def join(
        self,
        blocks: tuple[BlockSpec, ...],
        params: Mapping[str, Array],
        shape: tuple[int, ...],
        dtype: Any,
        choices: list[Choice],
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
            "params": {name: array.shape for name, array in params.items()},
            "shape": list(shape),
            "dtype": np.dtype(dtype).str,
            "choices": choices,
        }
        try:
            with shared_file("weights") as raw, BufferedWriter(raw) as weights:
                for array in params.values():
                    weights.write(np.ascontiguousarray(array).data)
                weights.flush()
                seat = Caller(self, plan, shared_file("plan"))
                self.tell(order, [seat.fileno(), raw.fileno()])
        except OSError as error:
            raise CrewError(f"no memory can be shared: {error}") from error
        return seat

    def tell(self, order: Mapping[str, Any], files: list[int] | None = None) -> None:
        """Send an order to every helper.

        Raises
        ------
        CrewError
            If they are gone, or do not listen.
        """
        if not self.usable:
            raise CrewError("helper processes are not there")
        message = order_of(order)
        for helper in self._helpers:
            helper.tell(message, files or [])

    def forget(self, plan: int) -> None:
        """Let the helpers drop a plan, if they are there."""
        with contextlib.suppress(CrewError):
            self.tell({"do": "drop", "plan": plan})

    def check(self, since: float) -> None:
        """Raise `CrewError` if a helper ended, or did nothing, in a wait that began at `since`."""
        for helper in self._helpers:
            helper.check(since)

    @property
    def answered(self) -> bool:
        """Whether nobody would have to wait in `greet`, whatever comes of it."""
        return all(helper.answered for helper in self._helpers)

    def greet(self) -> None:
        """Wait until every helper has said who it is; raises `CrewError` if one does not."""
        for helper in self._helpers:
            helper.greet()

    def use(self) -> tuple[float, int]:
        """Processor seconds of the helpers so far, and the most bytes they held beside ours."""
        with self.turns.session():
            self.greet()
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
        with uninterrupted():
            self.closed = True
            for helper in self._helpers:
                helper.end()
            atexit.unregister(self.close)


_crews: dict[tuple[int, int], Crew] = {}
_starting: dict[int, threading.Lock] = {}  # by process: a fork may have been made in the middle


def crew(seats: int) -> Crew:
    """The crew of so many that this process has; made anew after it was closed, or after a fork.

    Threads that ask at once get the same.

    Raises
    ------
    CrewError
        If the processes cannot be started.
    """
    key = os.getpid(), seats
    # Ctrl-C waits for the lock as well: it must not come between taking it and giving it back.
    with uninterrupted(), _starting.setdefault(os.getpid(), threading.Lock()):
        found = _crews.get(key)
        if found is None or found.closed:
            try:
                found = _crews[key] = Crew(seats)
            except OSError as error:
                raise CrewError(f"no helper process can be started: {error}") from error
    return found


def use_of_helpers() -> tuple[float, int]:
    """Processor seconds and peak bytes (`Crew.use`) of all helpers of this process."""
    uses = [each.use() for each in _crews.values() if each.usable]
    return sum(seconds for seconds, _ in uses), sum(size for _, size in uses)
