"""Callers with many engines, threads and forks."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from repvgg_ref.cpu.workers import crew as crews
from tests.faults.attacks.case import case, plain
from tests.faults.attacks.signals import send
from tests.faults.helped import Caller, during


@case(warns=False)
def forty_engines(caller: Caller) -> None:
    engines = [caller.another() for _ in range(40)]
    for engine in [*engines, *engines[::-3]]:
        caller.call(engine=engine)


@case(warns=False)
def engines_made_and_dropped(caller: Caller) -> None:
    for count in range(1, 60):
        caller.call(1 + count % 3, engine=caller.another())


@case(warns=False)
def crews_of_several_sizes(caller: Caller) -> None:
    for threads in (2, 3, 4, 2):
        caller.threads = threads
        caller.call(engine=caller.another())


@case(warns=False)
def every_shape_anew(caller: Caller) -> None:
    for count in range(1, 14):
        caller.call(count)


def _in_threads(caller: Caller, count: int, *, own: bool, calls: int = 6) -> None:
    def work() -> None:
        try:
            engine = caller.another() if own else None
            for _ in range(calls):
                caller.call(engine=engine)
        except Exception as error:
            caller.wrong.append(f"a thread raised {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@case(warns=False)
def threads_with_one_engine(caller: Caller) -> None:
    _in_threads(caller, 8, own=False)


@case(warns=False)
def threads_with_an_engine_each(caller: Caller) -> None:
    _in_threads(caller, 8, own=True)


@case(warns=True)
def threads_whose_helper_is_killed(caller: Caller) -> None:
    caller.call()
    threading.Timer(0.2, lambda: send(signal.SIGKILL, caller)).start()
    _in_threads(caller, 6, own=False, calls=150)
    time.sleep(0.3)
    plain(caller)


@case(warns=False)
def a_thread_that_starts_the_crew(caller: Caller) -> None:
    _in_threads(caller, 1, own=True)
    plain(caller)


def _forked(act: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            for each in list(crews._crews.values()):
                each.close()
            os._exit(code)
    return pid


def _end_of(pid: int, caller: Caller) -> None:
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        caller.wrong.append(f"a fork ended with {code}")


def _calls(caller: Caller) -> None:
    caller.call()
    assert not caller.wrong, caller.wrong


@case(warns=False)
def a_fork_that_calls(caller: Caller) -> None:
    plain(caller)
    _end_of(_forked(lambda: _calls(caller)), caller)
    plain(caller)


@case(warns=False)
def a_fork_before_any_call(caller: Caller) -> None:
    _end_of(_forked(lambda: _calls(caller)), caller)
    plain(caller)


@case(warns=False)
def five_forks_at_once(caller: Caller) -> None:
    plain(caller)
    children = [_forked(lambda: _calls(caller)) for _ in range(5)]
    plain(caller)
    for child in children:
        _end_of(child, caller)


@case(warns=False)
def a_fork_in_a_thread_while_another_calls(caller: Caller) -> None:
    plain(caller)
    children: list[int] = []
    during(lambda: children.append(_forked(lambda: os._exit(0))), caller)
    for child in children:
        _end_of(child, caller)
    plain(caller)


@case(warns=False)
def a_fork_that_outlives_its_parent(caller: Caller) -> None:
    """The fork's parent leaves without closing anything; the fork has helpers of its own."""

    def parent() -> None:
        caller.call()
        if os.fork() == 0:
            time.sleep(0.3)
            caller.call()
            ok = not caller.wrong
            for each in list(crews._crews.values()):
                each.close()
            os.write(told, b"right" if ok else b"wrong")
        os._exit(0)

    read, told = os.pipe()
    _end_of(_forked(parent), caller)
    os.close(told)
    with os.fdopen(read) as words:
        if words.read() != "right":
            caller.wrong.append("the fork's result")
    plain(caller)


@case(warns=None)
def a_crew_closed_by_somebody(caller: Caller) -> None:
    plain(caller)
    for each in list(crews._crews.values()):
        each.close()
    plain(caller)


@case(warns=False)
def collected_in_the_middle(caller: Caller) -> None:
    gc.set_threshold(1)
    plain(caller)


@case(warns=False)
def an_error_in_a_tap(caller: Caller) -> None:
    from tests.faults.helped import pictures

    def fail(name: str, _: Any) -> None:
        raise LookupError(name)

    for _ in range(3):
        with contextlib.suppress(LookupError):
            caller.engine.run(pictures(), fail)
        caller.call()


@case(warns=False)
def threads_with_shapes_of_their_own(caller: Caller) -> None:
    """More shapes than an engine keeps plans for."""

    def work(first: int) -> None:
        try:
            for count in range(24):
                caller.call(1 + (first + count) % 9)
        except Exception as error:
            caller.wrong.append(f"a thread raised {type(error).__name__}: {error}")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
