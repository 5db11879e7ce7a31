"""Where processes that run a plan together meet, and what each does of a stage; see `crew`."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import FileIO
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.workers.pool import Stage, portion, run_all

SPIN = 2_000  # looks at another seat's number, 0.1 ms, before it naps
NAP = 20e-6  # seconds; on a busy machine a sleeper is woken at once, a spinner has had its turn
LOOK = 0.02  # seconds between looks whether the other process is there at all
CELLS = 8  # numbers of 8 bytes a seat: a cache line


Check = Callable[[float], None]
"""Raises if another process is not there any more; is told when the wait began."""


class Board:
    """A line of numbers for each seat, which all see; the first is how many stages it has done."""

    def __init__(self, file: FileIO, seat: int, seats: int) -> None:
        file.truncate(8 * CELLS * seats)
        self._cells = memoryview(mmap.mmap(file.fileno(), 8 * CELLS * seats)).cast("q")
        self._mine, self._done = CELLS * seat, 0
        self._others = [CELLS * other for other in range(seats) if other != seat]

    def meet(self, check: Check) -> None:
        """Wait until all have called this as often as we; `check` raises if somebody is gone."""
        self._done += 1
        done, cells = self._done, self._cells
        cells[self._mine] = done
        for other in self._others:
            looks = 0
            while cells[other] < done:
                looks += 1
                if looks > SPIN:
                    self._wait(other, done, check)

    def _wait(self, other: int, done: int, check: Check) -> None:
        """The same with the processor left to others: they may be what we wait for."""
        began = looked = time.perf_counter()
        while self._cells[other] < done:
            time.sleep(NAP)
            if time.perf_counter() - looked > LOOK:
                check(began)
                looked = time.perf_counter()

    def tell(self, *numbers: int) -> None:
        """Show up to seven numbers to the other seats."""
        for place, number in enumerate(numbers, start=self._mine + 1):
            self._cells[place] = number

    def told(self, place: int) -> int:
        """The sum of a number that the other seats show."""
        return sum(self._cells[other + 1 + place] for other in self._others)


class Seat:
    """The team of one plan, as one process of the crew sees it."""

    def __init__(self, seat: int, seats: int, board: Board, file: FileIO, check: Check) -> None:
        self.seat: int | None = seat
        self.threads = self.processes = seats
        self._board, self._file, self._check = board, file, check

    @property
    def usable(self) -> bool:
        """A helper ends with its crew."""
        return True

    def allocate(self, numbers: int, dtype: Any) -> Array:
        """The plan's file as an array, (numbers,), once; every seat asks for the same."""
        size = max(1, numbers * np.dtype(dtype).itemsize)
        with self._file as file:
            file.truncate(size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype, numbers)

    def here(self, stage: Stage) -> None:
        """Do all items."""
        run_all(stage, None)

    def run(self, stage: Stage) -> None:
        """Do this seat's portion, and wait for the others."""
        self.portion(stage)
        self._board.meet(self._check)

    def portion(self, stage: Stage) -> None:
        """Do this seat's portion."""
        assert self.seat is not None
        for item in portion(stage.items, self.seat, self.threads):
            stage.run(self.seat, item)

    def call(self) -> None:
        """Only seat 0 calls."""

    def session(self) -> AbstractContextManager[None]:
        """A helper has one caller, and BLAS is held from its start."""
        return contextlib.nullcontext()
