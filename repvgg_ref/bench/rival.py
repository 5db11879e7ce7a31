"""A contender's process, seen from the one that asks it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repvgg_ref.bench.contenders.base import Entry
from repvgg_ref.bench.task import Task
from repvgg_ref.errors import ReportedError
from repvgg_ref.interpreter import running
from weights_io import sanitize

LEAVE = 3  # seconds


class ContenderError(ReportedError):
    """A contender that failed, or computed something else."""


@dataclass
class Rival:
    """A process that has prepared its network; `started` is what it said then.

    `error` and `seconds` are of its qualification.
    """

    entry: Entry
    variant: str
    process: subprocess.Popen[str]
    log: Path
    started: dict[str, Any]
    error: float = 0.0
    seconds: float = 0.0

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Let it `do` one of the worker's commands.

        Raises
        ------
        ContenderError
            If it fails, or the process ends.
        """
        return _ask(self.process, self.log, {"do": do, **order})

    def stop(self) -> None:
        """End the process."""
        _stop(self.process)


@contextmanager
def started(entry: Entry, variant: str, task: Task, folder: Path) -> Iterator[Rival]:
    """The process of a contender, ready; ended when the block ends."""
    log = folder / f"{entry.name}-{task.network}-{variant}.log".replace(os.sep, "-")
    job = {"entry": asdict(entry), "variant": variant, "task": task.as_json()}
    with log.open("w") as errors:
        process = subprocess.Popen(
            running("repvgg_ref.bench.worker", "main", json.dumps(job)),
            env=environment(task.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield Rival(entry, variant, process, log, _answer(process, log))
    finally:
        _stop(process)


def environment(threads: int) -> dict[str, str]:
    """Of a child process: the same number of threads for every runtime that reads one."""
    names = ("OMP", "OPENBLAS", "MKL", "REPVGG")
    return os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}


def _ask(process: subprocess.Popen[str], log: Path, order: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended; reading tells how
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    return _answer(process, log)


def _answer(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        said = [each for each in log.read_text(errors="replace").splitlines() if each.strip()]
        raise ContenderError(
            "its process ended early",
            got=f"exit code {code}"
            + (f", last words: {sanitize(said[-1].strip())}" if said else ""),
        )
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ContenderError("its process said what is no answer", got=sanitize(line.strip()))
    if "error" in answer:
        raise ContenderError(sanitize(answer["error"]))
    return answer


def _stop(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.close()
    try:  # it may have children, whose time is ours once it has waited for them
        process.wait(LEAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
