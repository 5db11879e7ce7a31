"""Killing a training with SIGKILL at a random moment, resuming it, and comparing bits."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.train.log import read_log
from repvgg_ref.train.state import read_newest, steps_in
from tests.cli.runner import ROOT, environment


class Whole(NamedTuple):
    """What a training that was never killed ends with."""

    digest: str
    losses: list[float]
    seconds: float


def result(out: Path) -> tuple[str, list[float]]:
    """A digest of every array of the last state, and the losses that are logged."""
    stored, damaged = read_newest(out)
    assert stored is not None, damaged
    digest = hashlib.sha256()
    for name, array in sorted(stored.arrays.items()):
        digest.update(name.encode() + array.tobytes())
    losses = [record["loss"] for record in read_log(out) if record["event"] == "step"]
    return digest.hexdigest(), losses


def start(out: Path) -> subprocess.Popen[str]:
    """A training in a process of its own that has finished importing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.train.killed_training", str(out)],
        cwd=ROOT,
        env=environment() | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def never_killed(out: Path) -> Whole:
    """The training from beginning to end."""
    with start(out) as process:
        began = time.monotonic()
        assert process.wait(120) == 0
    return Whole(*result(out), time.monotonic() - began)


def kill_and_resume(out: Path, whole: Whole, rng: np.random.Generator) -> dict[str, Any]:
    """Kill it once at a random moment, resume it to its end, and say what was found.

    `same` is whether every array's bits and every logged loss are those of `whole`.
    """
    moment = float(rng.uniform(0, whole.seconds))
    with start(out) as process:
        time.sleep(moment)
        process.kill()
        killed = process.wait(60) == -9
    states = steps_in(out)
    left = out.iterdir() if out.exists() else ()
    litter = [path.name for path in left if path.name.startswith(".")]
    logged = len(result(out)[1]) if states else 0
    with start(out) as process:
        assert process.wait(120) == 0
    digest, losses = result(out)
    return {
        "after_seconds": round(moment, 4),
        "killed": killed,
        "last_state": states[0] if states else 0,
        "steps_logged": logged,
        "half_written_files": len(litter),
        "same": digest == whole.digest and losses == whole.losses,
    }
