"""Jobs in which system calls fail at random, and the descriptors that are open afterwards.

    LD_PRELOAD=shim.so python -m tests.faults.descriptors JOB FOLDER FAULTS SEED

Prints one JSON object. One process goes through all of it, as a server would: what a fault loses
stays lost, and is counted in the end as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.cpu.workers import crew as crews
from repvgg_ref.cpu.workers import process as processes
from repvgg_ref.cpu.workers.process import CrewError
from tests.faults.injected import JOBS, Job, Shim, open_descriptors

_LOOK = 50  # faults between two collections of garbage, after which whatever is open is lost


class Crew(Job):
    """Helper processes that are started, given a plan's weights, and ended."""

    def prepare(self) -> None:
        processes._PROGRAM = ("signal", "pause")

    def run(self) -> str:
        try:
            crew = crews.crew(2)
            weights = {"weight": np.zeros(10, np.float32)}
            crew.join((), weights, (1, 3, 8, 8), np.float32, [], 0)
        except (CrewError, OSError) as error:
            return str(error)
        return ""

    def judge(self, said: str) -> str:
        return ""

    def mend(self) -> None:
        while crews._crews:
            with contextlib.suppress(OSError):
                crews._crews.popitem()[1].close()
        # `subprocess` gives up one that has started when it cannot read whether it did; helpers
        # end by themselves when their socket does, and these only wait.
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(pid), 0)


class Files(Job):
    """A small file written and read in every container."""

    def prepare(self) -> None:
        self.arrays: dict[str, Array] = {"a": np.ones((3, 4), np.float32), "b": np.zeros(5)}

    def run(self) -> str:
        containers: tuple[weights_io.Container, ...] = (
            "npz",
            "safetensors",
            "torch-zip",
            "torch-legacy",
        )
        for container in containers:
            path = self.folder / container
            try:
                weights_io.save_weights(path, self.arrays, container=container)
                with weights_io.open_weights(path) as archive:
                    root: Any = archive.root
                    assert all((root[n].read() == self.arrays[n]).all() for n in self.arrays)
            except (weights_io.WeightsFileError, OSError) as error:
                return str(error)
        return ""

    def judge(self, said: str) -> str:
        return ""


ALL: dict[str, type[Job]] = {**JOBS, "crew": Crew, "files": Files}


def fault(shim: Shim, job: Job, call: int) -> tuple[str, str]:
    """Let that call fail (0: none): its name, "" if there were not so many; and what was raised."""
    job.prepare()
    shim.arm(call)
    try:
        job.run()
        raised = ""
    except Exception as error:
        raised = type(error).__name__
    _, failed = shim.disarm()
    if isinstance(job, Crew):
        job.mend()
    return failed, raised


def faults(job: Job, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """`count` calls that failed, each somewhere in a run of its own."""
    shim = Shim()
    for _ in range(2):  # imports, caches
        fault(shim, job, 0)
    job.prepare()
    shim.arm(0)
    job.run()
    calls = shim.disarm()[0]
    job.mend()
    before = open_descriptors()
    failed: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    while failed.total() < count:
        name, error = fault(shim, job, int(rng.integers(1, calls + 1)))
        failed[name] += bool(name)
        raised[error] += bool(error)
        if failed.total() % _LOOK == 0:
            lost |= open_descriptors() - before
    lost |= open_descriptors() - before
    return {
        "faults": failed.total(),
        "calls": calls,
        "failed": dict(sorted((+failed).items())),
        "raised": dict(sorted((+raised).items())),
        "lost": sorted(lost.elements()),
    }


def main(name: str, folder: str, count: str, seed: str) -> None:
    """What the command line asks for."""
    warnings.simplefilter("ignore")  # ResourceWarning: what counts is counted
    told = faults(ALL[name](Path(folder)), int(count), np.random.default_rng(int(seed)))
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
