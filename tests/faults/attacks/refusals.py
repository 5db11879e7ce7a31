"""Limits, and what the system refuses."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.attacks.case import CASES, Case, plain
from tests.faults.helped import Caller


def _limited(what: int, most: int, caller: Caller) -> None:
    """Between two calls."""
    plain(caller)
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        caller.call(4)
        caller.call(engine=caller.another())
        plain(caller)
    finally:
        resource.setrlimit(what, (soft, hard))


def _no_descriptor_left(caller: Caller) -> None:
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    _limited(resource.RLIMIT_NOFILE, used + 1, caller)


CASES["no descriptor left, between calls"] = Case(_no_descriptor_left)
for _most in (8, 12, 20):
    CASES[f"{_most} descriptors"] = Case(plain, limits={resource.RLIMIT_NOFILE: _most})
CASES["files of no bytes"] = Case(partial(_limited, resource.RLIMIT_FSIZE, 0))
CASES["files of 4 KB"] = Case(partial(_limited, resource.RLIMIT_FSIZE, 4096))
CASES["no core dumps"] = Case(partial(_limited, resource.RLIMIT_CORE, 0), warns=False)
CASES["no locked memory"] = Case(partial(_limited, resource.RLIMIT_MEMLOCK, 0), warns=False)
CASES["2 GB of addresses"] = Case(partial(_limited, resource.RLIMIT_AS, 2 << 30))
CASES["a small stack"] = Case(partial(_limited, resource.RLIMIT_STACK, 1 << 20))

# What the system refuses --------------------------------------------------------------------------


def _refused(module: Any, name: str, code: int, first: int, caller: Caller) -> None:
    """From the `first` such call on."""
    real, calls = getattr(module, name), iter(range(1, 10**6))

    def refuse(*arguments: Any, **settings: Any) -> Any:
        if next(calls) >= first:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **settings)

    setattr(module, name, refuse)
    try:
        for count in (2, 2, 3, 4):
            caller.call(count)
    finally:
        setattr(module, name, real)
    plain(caller)


for _module, _name, _codes in (
    (os, "memfd_create", ("ENOSYS", "EPERM", "ENOMEM", "EMFILE")),
    (socket, "socketpair", ("EACCES", "EMFILE", "EAFNOSUPPORT")),
    (subprocess, "Popen", ("EAGAIN", "ENOMEM", "EACCES", "E2BIG")),
    (socket, "send_fds", ("EPERM", "ENOBUFS", "ETOOMANYREFS")),
):
    for _code in _codes:
        for _first in (1, 2):
            CASES[f"{_name} {_code}, {_first}"] = Case(
                partial(_refused, _module, _name, getattr(errno, _code), _first)
            )


def _no_memory_to_share(caller: Caller) -> None:
    """As a full /dev/shm, or a full cgroup, has it: the file is there, and cannot grow."""
    from repvgg_ref.cpu.workers import seats

    class Full:
        def __getattr__(self, what: str) -> Any:
            return getattr(mmap, what)

        def mmap(self, *_: Any) -> Any:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    mmap: Any = vars(seats)["mmap"]
    plain(caller)
    vars(seats)["mmap"] = Full()
    try:
        caller.call(4)
        plain(caller)
    finally:
        vars(seats)["mmap"] = mmap
    plain(caller)


CASES["mmap ENOMEM"] = Case(_no_memory_to_share)
