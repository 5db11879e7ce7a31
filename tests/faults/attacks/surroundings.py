"""Streams, start modes, environment and folder of a caller."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.faults.attacks.case import CASES, Case, case, plain
from tests.faults.helped import Caller

for _closed in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
    CASES[f"closed {', '.join(map(str, _closed))}"] = Case(plain, closed=_closed, warns=False)


@case(warns=False)
def streams_closed_between_calls(caller: Caller) -> None:
    plain(caller)
    for number in (0, 1, 2):
        os.close(number)
    caller.call(engine=caller.another())
    caller.call(4)


@case(warns=False)
def stdout_is_full(caller: Caller) -> None:
    kept = os.dup(1)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), 1)
    plain(caller)
    os.dup2(kept, 1)
    os.close(kept)


@case(warns=None)
def every_descriptor_closed_between_calls(caller: Caller) -> None:
    """As a daemon does it."""
    plain(caller)
    os.closerange(3, 256)
    plain(caller)


# Start modes --------------------------------------------------------------------------------------

for _flag in (
    "-I",
    "-S",
    "-E",
    "-s",
    "-P",
    "-O",
    "-OO",
    "-B",
    "-u",
    "-bb",
    "-IS",
    "-d",
    "-R",
    "-q",
):
    CASES[f"python {_flag}"] = Case(plain, flags=(_flag,), warns=False)
for _flag in (
    *("dev", "utf8", "importtime", "tracemalloc=5", "faulthandler", "frozen_modules=off"),
    *(
        "showrefcount",
        "no_debug_ranges",
        "int_max_str_digits=640",
        "pycache_prefix=/tmp",
        "unknown",
    ),
):
    CASES[f"python -X {_flag}"] = Case(plain, flags=("-X", _flag), warns=False)
for _flag in ("error::ResourceWarning", "default", "ignore"):
    CASES[f"python -W {_flag}"] = Case(plain, flags=("-W", _flag), warns=False)

# Surroundings -------------------------------------------------------------------------------------

_GONE = ("HOME", "PATH", "LANG", "TMPDIR", "USER", "TERM")
CASES["no HOME"] = Case(plain, unset=("HOME",), warns=False)
CASES["next to no environment"] = Case(plain, unset=_GONE, warns=False)
CASES["a folder for temporary files that is not there"] = Case(
    plain, env={"TMPDIR": "/nowhere"}, warns=False
)
CASES["the C locale"] = Case(plain, env={"LC_ALL": "C"}, warns=False)
CASES["a locale that is not there"] = Case(plain, env={"LC_ALL": "xx_YY.utf9"}, warns=False)
CASES["another hash seed"] = Case(plain, env={"PYTHONHASHSEED": "7"}, warns=False)
CASES["PYTHONSTARTUP and PYTHONINSPECT"] = Case(
    plain, env={"PYTHONSTARTUP": "/nowhere.py", "PYTHONINSPECT": ""}, warns=False
)
CASES["a breakpoint and malloc of its own"] = Case(
    plain, env={"PYTHONBREAKPOINT": "no.such", "PYTHONMALLOC": "malloc_debug"}, warns=False
)
CASES["OpenMP of one thread"] = Case(plain, env={"OMP_NUM_THREADS": "1"}, warns=False)
CASES["folder gone"] = Case(plain, gone=True, warns=False)


@case(warns=False)
def modules_of_ours_in_the_folder(caller: Caller) -> None:
    """A folder that Python looks into first holds a json.py, once we have ours."""
    for name in ("json", "socket", "numpy", "signal", "repvgg_ref"):
        Path(f"{name}.py").write_text("raise SystemExit('led astray')\n", encoding="utf-8")
    sys.path.insert(0, "")
    plain(caller)


@case(warns=False)
def folder_changed_between_calls(caller: Caller) -> None:
    plain(caller)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        caller.call(engine=caller.another())
    caller.call(4)
    caller.call(engine=caller.another())


@case(warns=False)
def no_executable(caller: Caller) -> None:
    sys.executable = ""
    caller.engine = caller.another()
    plain(caller)


@case(warns=True)
def an_executable_that_is_not_there(caller: Caller) -> None:
    sys.executable = "/nowhere/python3"
    plain(caller)


@case(warns=True)
def an_executable_that_is_another_program(caller: Caller) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "python")
        path.symlink_to("/bin/true")
        sys.executable = str(path)
        plain(caller)


@case(waits=True, warns=True)
def an_executable_that_says_anything(caller: Caller) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "python")
        path.write_text("#!/bin/sh\nhead -c 100000 /dev/zero\nexec sleep 30\n", encoding="utf-8")
        path.chmod(0o755)
        sys.executable = str(path)
        plain(caller)


@case(warns=False)
def one_processor(caller: Caller) -> None:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    plain(caller)


@case(warns=False)
def the_lowest_priority(caller: Caller) -> None:
    os.nice(19)
    plain(caller)
