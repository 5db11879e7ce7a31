"""Jobs killed with SIGKILL and run again; run by `test_kills` and the study.

    python -m tests.faults.killed JOB FOLDER KILLS SEED
    LD_PRELOAD=shim.so python -m tests.faults.killed JOB FOLDER KILLS SEED calls

They are killed at random moments, or, with ``calls``, before system calls on files drawn at random,
each of them at most once: few moments lie between two calls that are near each other. Prints one
JSON object: what the kills found, and what was wrong after which of them. Each run is a process of
its own, forked from one that has everything imported, so that a thousand take minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.train.log import read_log
from repvgg_ref.train.state import read_newest, steps_in
from tests.faults.injected import Convert, Job, Shards, Shim
from tests.train.small_training import changed, run, small_job

KILLED = "error: killed"
RECIPE = changed(epochs=2, accumulate=2, ema=0.8, mixup=0.4, custom_l2=True, decay="official-first")


class Train(Job):
    """A training that saves after every step, and resumes what is there."""

    def prepare(self) -> None:
        self.out = self.folder / "out"
        for path in self.out.iterdir() if self.out.exists() else ():
            path.unlink()

    def run(self) -> str:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]  # slower than all the rest
        run(small_job(self.out, recipe=RECIPE, backend="numpy", save_every=1, resume=True))
        return ""

    def judge(self, said: str) -> str:
        if said:
            return ""  # what a killed one has left shows when it is resumed
        known = ("state-", "train", "result", "log", "lock", "deploy")
        odd = [path.name for path in self.out.iterdir() if not path.name.startswith(known)]
        states = len(steps_in(self.out))
        return f"left {odd}" if odd else "" if states == 2 else f"{states} states"


JOBS: dict[str, type[Job]] = {"convert": Convert, "train": Train, "shards": Shards}


class Whole(NamedTuple):
    """What a run that was not killed leaves, and how long it takes."""

    digest: str
    seconds: float


def outcome(job: Job) -> str:
    """A digest of what a finished job has made; of a training: weights, velocity, losses."""
    if isinstance(job, Train):
        stored, damaged = read_newest(job.out)
        assert stored is not None, damaged
        arrays = sorted(stored.arrays.items())
        digest = hashlib.sha256(b"".join(name.encode() + a.tobytes() for name, a in arrays))
        losses = [record["loss"] for record in read_log(job.out) if record["event"] == "step"]
        return f"{digest.hexdigest()} {losses}"
    out: Path = job.out.parent if isinstance(job, Convert) else job.out  # type: ignore[attr-defined]
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "lock"}
    return str({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})


def forked(act: Callable[[], object]) -> int:
    """The process in which `act` begins; its exit code is 0 if it ends well."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """How a process ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def whole(job: Job) -> Whole:
    """The job from beginning to end, twice: the first time it waits for what is cached later."""
    seconds = []
    for _ in range(2):
        job.prepare()
        began = time.monotonic()
        assert ended(forked(job.run)) == 0
        seconds.append(time.monotonic() - began)
    return Whole(outcome(job), min(seconds))


def kill(job: Job, known: Whole, moment: float) -> dict[str, Any]:
    """Kill it after `moment` seconds, look, run it again, and say what was found."""
    job.prepare()
    pid = forked(job.run)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    return looked_at(job, known, pid)


def kill_at(job: Job, known: Whole, shim: Shim, call: int) -> dict[str, Any]:
    """Kill it before its `call`-th system call on files; as `kill`."""

    def run() -> None:
        shim.kill_at(call)
        job.run()

    job.prepare()
    return looked_at(job, known, forked(run))


def looked_at(job: Job, known: Whole, pid: int) -> dict[str, Any]:
    """What a run that is being killed has left, and what the next one makes of it."""
    found: dict[str, Any] = {"killed": ended(pid) == -signal.SIGKILL, "wrong": []}
    found["litter"] = sum(path.name.startswith(".") for path in job.folder.rglob("*"))
    torn = job.judge(KILLED)
    if torn and not torn.startswith("left"):
        found["wrong"].append(torn)
    if code := ended(forked(job.run)):
        found["wrong"].append(f"the next run ended with {code}")
    elif left := job.judge(""):
        found["wrong"].append(f"the next run: {left}")
    elif outcome(job) != known.digest:
        found["wrong"].append("the next run made something else")
    return found


def calls_of(job: Job, shim: Shim) -> int:
    """How many system calls on files a whole run makes."""
    read, write = os.pipe()

    def run() -> None:
        shim.arm(0)
        job.run()
        os.write(write, str(shim.disarm()[0]).encode())

    job.prepare()
    assert ended(forked(run)) == 0
    os.close(write)
    with os.fdopen(read) as told:
        return int(told.read())


def kills(job: Job, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """`count` kills that came before the end, at moments from the beginning to the end."""
    known, told = whole(job), _nothing()
    while told["kills"] < count:
        moment = float(rng.uniform(0, known.seconds))
        _add(told, kill(job, known, moment), f"after {moment:.4f} s")
    return told | {"seconds": round(known.seconds, 4)}


def kills_at_calls(job: Job, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """As many kills, each before another system call; `LD_PRELOAD` has the shim."""
    shim, told = Shim(), _nothing()
    known, calls = whole(job), calls_of(job, shim)
    for call in rng.permutation(calls)[:count] + 1:
        _add(told, kill_at(job, known, shim, int(call)), f"before call {call}")
    return told | {"calls": calls}


def _nothing() -> dict[str, Any]:
    return {"kills": 0, "too_late": 0, "with_litter": 0, "wrong": []}


def _add(told: dict[str, Any], found: dict[str, Any], when: str) -> None:
    told["kills" if found["killed"] else "too_late"] += 1
    told["with_litter"] += bool(found["litter"])
    told["wrong"] += [f"{when}: {each}" for each in found["wrong"]]


def main(name: str, folder: str, count: str, seed: str, at: str = "moments") -> None:
    """What the command line asks for."""
    ways = {"moments": kills, "calls": kills_at_calls}
    told = ways[at](JOBS[name](Path(folder)), int(count), np.random.default_rng(int(seed)))
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
