"""A job with every one of its system calls on files failing once; run by `test_faults`.

    LD_PRELOAD=shim.so python -m tests.faults.injected JOB FOLDER [EVERY]

Prints one JSON object: how many calls the job makes, and what was wrong after which fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from repvgg_ref_cli.main import main

from repvgg_ref.data.write_pixels import write_pixels
from repvgg_ref.errors import ReportedError
from repvgg_ref.train.divergence import DivergenceError
from repvgg_ref.train.folder import Folder
from repvgg_ref.train.job import identity
from repvgg_ref.train.state import read_newest
from tests.cli.runner import save_small
from tests.data.datasets import array_source
from tests.train.small_training import small_job


class Shim:
    """The functions of ``shim.c`` in this process, which was started with it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_disarm.restype = ctypes.c_long
        self._library.fault_failed.restype = ctypes.c_char_p

    def arm(self, call: int) -> None:
        """Let that call of this thread fail; 0: none."""
        self._library.fault_arm(ctypes.c_long(call or -1))

    def kill_at(self, call: int) -> None:
        """Let this process be killed before that call of this thread."""
        self._library.fault_kills(1)
        self.arm(call)

    def disarm(self) -> tuple[int, str]:
        """How many calls there were, and which has failed."""
        return int(self._library.fault_disarm()), self._library.fault_failed().decode()


class Job(ABC):
    """Something that writes files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def prepare(self) -> None:
        """Set up what is there before the job."""

    @abstractmethod
    def run(self) -> str:
        """Do it; what it says of a failure, in one line, or nothing."""

    @abstractmethod
    def judge(self, said: str) -> str:
        """What is wrong with what it has left, if anything."""

    def mend(self) -> None:
        """What a user does next, with no fault: the job again."""
        self.run()


class Convert(Job):
    """`repvgg-ref convert` over an older file."""

    def prepare(self) -> None:
        self.source, self.out = self.folder / "train.pth", self.folder / "out" / "deploy.npz"
        if not self.source.exists():
            save_small(self.source)
        self.out.parent.mkdir(exist_ok=True)
        self.out.write_bytes(b"old")

    def run(self) -> str:
        words = io.StringIO()
        with contextlib.redirect_stderr(words), contextlib.redirect_stdout(io.StringIO()):
            code = main(["convert", "--in", str(self.source), "--out", str(self.out)])
        said = words.getvalue()
        if code == 0:
            return ""
        return said.strip() if code == 2 and said.count("\n") == 1 else f"code {code}: {said!r}"

    def judge(self, said: str) -> str:
        now = self.out.read_bytes() if self.out.exists() else b"gone"
        if said and not said.startswith("error: "):
            return f"said {said}"
        if "this is a bug" in said:
            return said
        if now != b"old":
            try:
                with np.load(self.out) as arrays:
                    assert "linear.bias" in arrays
            except Exception as error:
                return f"torn: {type(error).__name__}"
        elif not said:
            return "said it was done, and left the old file"
        return _left_over(self.out.parent, {self.out.name})


class Step(Job):
    """A training step and its state, after an older one."""

    def prepare(self) -> None:
        self.out = self.folder / "out"
        for path in self.out.iterdir() if self.out.exists() else ():
            path.unlink()
        self.job = small_job(self.out)
        self.state = self.job.updater.start(self.job.start.params)
        with Folder(self.out, self.job.updater, identity(self.job), writes=True) as folder:
            folder.save(self.state)
        self.later = replace(self.state, step=1)

    def run(self) -> str:
        try:
            with Folder(self.out, self.job.updater, identity(self.job), writes=True) as folder:
                folder.restore(accept_changes=False)
                folder.save(self.later)
        except (ReportedError, DivergenceError) as error:
            return str(error)
        return ""

    def judge(self, said: str) -> str:
        stored, damaged = read_newest(self.out)
        if stored is None or damaged:
            return f"no whole state: {damaged}"
        if not said and stored.step != 1:
            return "said it was done, and left the old state"
        states = [f"state-{step:09}" for step in (0, 1)]
        mine = {f"{state}{suffix}" for state in states for suffix in (".json", ".safetensors")}
        return _left_over(self.out, mine | {"lock", "train.pth", "train-ema.pth"})


class Shards(Job):
    """`shards` of a few pictures, continued."""

    def prepare(self) -> None:
        self.out = self.folder / "out"
        for path in self.out.iterdir() if self.out.exists() else ():
            path.unlink()
        self.source = array_source(70, side=16)

    def run(self) -> str:
        try:
            write_pixels(self.source, self.out, size=16, part_bytes=64 * 16 * 16 * 3, threads=1)
        except ReportedError as error:
            return str(error)
        return ""

    def judge(self, said: str) -> str:
        is_done = (self.out / "manifest.json").exists()
        if not said and not is_done:
            return "said it was done, and is not"
        return _left_over(self.out, set(), hidden_only=True)


JOBS: dict[str, type[Job]] = {"convert": Convert, "step": Step, "shards": Shards}


def _left_over(folder: Path, mine: set[str], *, hidden_only: bool = False) -> str:
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    found = {name for name in names if name.startswith(".")} if hidden_only else names - mine
    return f"left {sorted(found)}" if found else ""


def open_descriptors() -> Counter[str]:
    """What this process has open, after its garbage was collected."""
    gc.collect()
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return Counter(found)


def _one(shim: Shim, job: Job, call: int) -> tuple[list[str], int]:
    """What is wrong when that call fails (0: none), and how many were made."""
    job.prepare()
    before = open_descriptors()
    shim.arm(call)
    try:
        said = job.run()
    except Exception as error:
        said = f"raised {type(error).__name__}: {error}"
    count, failed = shim.disarm()
    wrong = [f"unclear: {said}"] if said.startswith("raised") else []
    found = job.judge(said)
    if found and not (failed == "unlink" and found.startswith("left")):  # removing it has failed
        wrong.append(found)
    if lost := open_descriptors() - before:
        wrong.append(f"lost {sorted(lost)}")
    job.mend()
    if found := job.judge(""):
        wrong.append(f"afterwards {found}")
    return [f"{failed} {call}: {each}" for each in wrong], count


def run() -> None:
    """Every call of the job on the command line, or every EVERY-th."""
    warnings.simplefilter("ignore")  # ResourceWarning and the like; what counts is counted
    job = JOBS[sys.argv[1]](Path(sys.argv[2]))
    every = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    shim = Shim()
    _one(shim, job, 0)  # imports, caches
    _, count = _one(shim, job, 0)
    wrong: list[str] = []
    for call in range(1, count + 1, every):
        wrong += _one(shim, job, call)[0]
    told: dict[str, Any] = {"calls": count, "wrong": wrong}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    run()
