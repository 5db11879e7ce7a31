"""Threads of our own, with BLAS held to one thread in each.

A layer is a few *stages*; a stage is a number of independent items. The calling thread and its
helpers draw items from one counter, so a thread that the machine holds up does fewer. NumPy
releases the interpreter lock inside products and element-wise loops, where the time goes.

A stage costs as much as a small product, because one thread wakes the other and is woken. What
helps is fewer stages (`schedule`), longer calls, or processes (`crew`).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.workers import memory
from repvgg_ref.errors import BackendError

P = ParamSpec("P")
R = TypeVar("R")

THREADS = "REPVGG_NUM_THREADS"
_asked: ContextVar[int | None] = ContextVar("threads", default=None)


class Stage(NamedTuple):
    """`items` calls ``run(worker, item)`` in any order; `worker` tells whose scratch to use."""

    items: int
    run: Callable[[int, int], None]


Step = Callable[[], object]
"""One NumPy call on views made beforehand: making views costs as much as a small product."""


class Team(Protocol):
    """Workers that do stages together: threads of this process (`Pool`), or processes (`crew`)."""

    @property
    def threads(self) -> int:
        """How many workers."""

    @property
    def seat(self) -> int | None:
        """Which of them this process is; None if it is all."""

    @property
    def processes(self) -> int:
        """How many processes the workers are in."""

    @property
    def usable(self) -> bool:
        """Whether its workers are there: not in a fork of the process that has them."""

    def allocate(self, numbers: int, dtype: Any) -> Array:
        """Zeros that all workers see, (numbers,)."""

    def here(self, stage: Stage) -> None:
        """Do all items in this process, and nothing in the others."""

    def call(self) -> None:
        """Let the other processes begin the same run of the same plan."""

    def run(self, stage: Stage) -> None:
        """Do all items together, each once; all workers have done theirs when this returns."""

    def session(self) -> AbstractContextManager[None]:
        """For one caller at a time, with every BLAS held to one thread."""


def portion(items: int, share: int, shares: int) -> range:
    """Which items are in one of several nearly equal shares, the first ones being the larger."""
    first, end = (-(-at * items // shares) for at in (share, share + 1))
    return range(first, end)


def prepared(items: int, build: Callable[[int, int], list[Step]]) -> Stage:
    """A stage whose item is a list of steps, built when ``(worker, item)`` first comes up."""
    built: dict[tuple[int, int], list[Step]] = {}

    def run(worker: int, item: int) -> None:
        steps = built.get((worker, item))
        if steps is None:
            steps = built[worker, item] = build(worker, item)
        for step in steps:
            step()

    return Stage(items, run)


@contextmanager
def default_of(threads: int | None) -> Iterator[None]:
    """Let `default_threads` be `threads` for the caller within the block; None changes nothing."""
    before = _asked.set(threads or _asked.get())
    try:
        yield
    finally:
        _asked.reset(before)


def default_threads() -> int:
    """That of `default_of`, else of ``REPVGG_NUM_THREADS``, else the processors we may use.

    Raises
    ------
    BackendError
        If the variable is no positive number.
    """
    if (held := _asked.get()) is not None:
        return held
    asked = os.environ.get(THREADS)
    if not asked:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else (os.cpu_count() or 1)
        )
    if not asked.isdigit() or int(asked) < 1:
        raise BackendError(
            f"{THREADS} must be a number of threads", got=repr(asked), wanted="1 or more"
        )
    return int(asked)


class Pool:
    """`threads` workers, the caller being number 0; the others wait for work as daemons."""

    seat, processes = None, 1

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._busy, self._pid = OneAtATime(), os.getpid()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._orders: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(threads - 1)]
        for worker, orders in enumerate(self._orders, start=1):
            threading.Thread(target=self._help, args=(worker, orders), daemon=True).start()

    def run(self, stage: Stage) -> None:
        """Do all items; an exception in one of them is raised here, after the others stop."""
        helpers = self._orders[: stage.items - 1]
        job = _Job(stage)
        for orders in helpers:
            orders.put(job)
        failed = job.work(0)
        for _ in helpers:
            failed = self._done.get() or failed
        if failed is not None:
            raise failed

    here = run

    @property
    def usable(self) -> bool:
        """Whether this is the process that made it: threads do not survive a fork."""
        return self._pid == os.getpid()

    def call(self) -> None:
        """There are no other processes."""

    def allocate(self, numbers: int, dtype: Any) -> Array:
        """Zeros, (numbers,)."""
        found = memory.empty((numbers,), dtype)
        found.fill(0)
        return found

    def session(self) -> AbstractContextManager[None]:
        """For one caller at a time, with every BLAS held to one thread until the end."""
        return self._busy.session()

    def _help(self, worker: int, orders: SimpleQueue[_Job]) -> None:
        while True:
            self._done.put(orders.get().work(worker))


class OneAtATime:
    """Sessions of one caller, in which every BLAS is held to one thread.

    Sessions may be nested; only the outermost tells BLAS, which takes tens of microseconds.
    """

    def __init__(self) -> None:
        self._busy, self._depth = threading.RLock(), 0

    @contextmanager
    def session(self) -> Iterator[None]:
        """Wait for one's turn; keep it until the end."""
        with self._busy:
            self._depth += 1
            try:
                if self._depth > 1:
                    yield
                    return
                with _controller().limit(limits=1, user_api="blas"):
                    yield
            finally:
                self._depth -= 1


class _Job:
    def __init__(self, stage: Stage) -> None:
        self._run, self._items, self._next = stage.run, stage.items, itertools.count()

    def work(self, worker: int) -> BaseException | None:
        """Draw items until none is left; `next` on a counter is atomic."""
        try:
            while (item := next(self._next)) < self._items:
                self._run(worker, item)
        except BaseException as error:  # handed to the caller of `Pool.run`
            self._next = itertools.count(self._items)
            return error
        return None


def pool(threads: int | None = None) -> Pool:
    """The process's pool of `threads`, by default `default_threads`; made anew after a fork."""
    return _pool(os.getpid(), threads or default_threads())


def run_all(stage: Stage, pool: Pool | None) -> None:
    """Do a stage on `pool`, or alone if there is none."""
    if pool is not None:
        pool.run(stage)
        return
    for item in range(stage.items):
        stage.run(0, item)


def share_out(items: int, run: Callable[[int, int], None]) -> None:
    """Do items on the default pool, in a session."""
    threads = pool()
    with threads.session():
        threads.run(Stage(items, run))


def in_session(function: Callable[P, R]) -> Callable[P, R]:
    """Call `function` within a session of the default pool.

    Else each of its small products would wake BLAS's own threads, which spin on for a while
    afterwards, on the processors that ours work on.
    """

    @wraps(function)
    def held(*args: P.args, **settings: P.kwargs) -> R:
        with pool().session():
            return function(*args, **settings)

    return held


@cache
def _pool(pid: int, threads: int) -> Pool:
    return Pool(threads)


@cache
def _controller() -> Any:
    """Finding the BLAS libraries takes milliseconds, setting them microseconds: find them once."""
    import numpy.linalg  # noqa: F401  so that NumPy's BLAS is among those found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
