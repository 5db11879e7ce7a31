"""Signals to helpers, and signals as the caller has set them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from functools import partial

from repvgg_ref.cpu.workers import crew as crews
from tests.faults.attacks.case import CASES, Case, case, plain
from tests.faults.helped import Caller, during


def send(number: int, caller: Caller) -> None:
    """Send a signal to all helpers."""
    for pid in caller.helpers():
        os.kill(pid, number)


def _before_a_call(number: int, caller: Caller) -> None:
    plain(caller)
    send(number, caller)
    plain(caller)


def _before_a_plan(number: int, caller: Caller) -> None:
    plain(caller)
    send(number, caller)
    caller.call(5)
    plain(caller)


def _in_a_call(number: int, caller: Caller) -> None:
    plain(caller)
    during(partial(send, number, caller), caller)
    plain(caller)


def _at_once(number: int, caller: Caller) -> None:
    crews.crew(2)
    send(number, caller)
    plain(caller)


_WHEN = {"before a call": _before_a_call, "before a plan": _before_a_plan, "in a call": _in_a_call}
for _number in (signal.SIGSTOP, signal.SIGKILL):
    for _name, _when in _WHEN.items():
        CASES[f"{_number.name} {_name}"] = Case(
            partial(_when, _number), waits=_number == signal.SIGSTOP, warns=True
        )
    CASES[f"{_number.name} at once"] = Case(
        partial(_at_once, _number), waits=_number == signal.SIGSTOP, warns=True
    )
for _number in (signal.SIGTERM, signal.SIGSEGV, signal.SIGHUP, signal.SIGXCPU, signal.SIGABRT):
    CASES[f"{_number.name} in a call"] = Case(partial(_in_a_call, _number), warns=True)
for _number in (signal.SIGINT, signal.SIGCHLD, signal.SIGWINCH, signal.SIGPIPE):
    CASES[f"{_number.name} in a call"] = Case(partial(_in_a_call, _number), warns=False)


@case(warns=False)
def stopped_and_continued(caller: Caller) -> None:
    def blink() -> None:
        send(signal.SIGSTOP, caller)
        time.sleep(1)
        send(signal.SIGCONT, caller)

    plain(caller)
    during(blink, caller)
    plain(caller)


@case(waits=True, warns=False)
def all_stopped_for_longer_than_patience(caller: Caller) -> None:
    plain(caller)
    group = [str(os.getpid()), *map(str, caller.helpers())]
    wake = f"sleep 0.2; kill -STOP {' '.join(group)}; sleep 6; kill -CONT {' '.join(group)}"
    with subprocess.Popen(["sh", "-c", wake]):
        until, slowest = time.monotonic() + 7, caller.slowest
        while time.monotonic() < until:
            caller.call()
    caller.slowest = slowest  # it was stopped itself
    plain(caller)


@case(warns=False)
def children_are_ignored(caller: Caller) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    plain(caller)


@case(warns=True)
def somebody_reaps_all_children(caller: Caller) -> None:
    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    signal.signal(signal.SIGCHLD, reap)
    plain(caller)
    _in_a_call(signal.SIGKILL, caller)


@case(warns=False)
def every_signal_is_blocked(caller: Caller) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    plain(caller)


@case(warns=False)
def interrupts_are_ignored(caller: Caller) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plain(caller)
