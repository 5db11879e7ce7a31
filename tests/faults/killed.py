"""Jobs killed with SIGKILL at random moments, and run again; run by `test_kills` and the study.

    python -m tests.faults.killed JOB FOLDER KILLS SEED

Prints one JSON object: what the kills found, and what was wrong after which of them. Each run is a
process of its own, forked from one that has everything imported, so that a thousand take minutes.
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
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.train.log import read_log
from repvgg_ref.train.state import read_newest, steps_in
from tests.faults.injected import Convert, Job, Shards
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
    """The job from beginning to end, three times."""
    seconds = []
    for _ in range(3):
        job.prepare()
        began = time.monotonic()
        assert ended(forked(job.run)) == 0
        seconds.append(time.monotonic() - began)
    return Whole(outcome(job), median(seconds))


def kill(job: Job, known: Whole, moment: float) -> dict[str, Any]:
    """Kill it after `moment` seconds, look, run it again, and say what was found."""
    job.prepare()
    pid = forked(job.run)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
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


def kills(job: Job, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """`count` kills that came before the end, at moments from the beginning to the end."""
    known = whole(job)
    told: dict[str, Any] = {"kills": 0, "too_late": 0, "with_litter": 0, "wrong": []}
    while told["kills"] < count:
        moment = float(rng.uniform(0, known.seconds))
        found = kill(job, known, moment)
        told["kills" if found["killed"] else "too_late"] += 1
        told["with_litter"] += bool(found["litter"])
        told["wrong"] += [f"after {moment:.4f} s: {each}" for each in found["wrong"]]
    return told | {"seconds": round(known.seconds, 4)}


def main(name: str, folder: str, count: str, seed: str) -> None:
    """What the command line asks for."""
    told = kills(JOBS[name](Path(folder)), int(count), np.random.default_rng(int(seed)))
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
