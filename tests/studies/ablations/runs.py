"""Finished runs, one JSON object a line: whole or not there, so that a killed study goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repvgg_ref.errors import ReportedError
from tests.studies.ablations.task import TASK, Task
from weights_io import atomic_path, claim

RUNS = "runs.jsonl"
Run = dict[str, Any]
Train = Callable[[str, int, Task], Run]


class StudyError(ReportedError):
    """Runs that cannot be gone on with."""


def read(path: Path, task: Task = TASK) -> list[Run]:
    """The runs of a file; none if there is no file.

    Raises
    ------
    StudyError
        If a line is no run, or a run is of another task: such runs cannot be compared.
    """
    if not path.exists():
        return []
    found: list[Run] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(line)
            block, seed, of = run["block"], run["seed"], run["task"]
        except (ValueError, KeyError, TypeError):
            raise StudyError(f"{path}: line {number} is no run", got=line[:80]) from None
        if of != _stated(task):
            raise StudyError(
                f"{path}: {block} with seed {seed} was trained otherwise than this study trains",
                got=of,
                wanted=_stated(task),
                advice="move the file away to begin anew",
            )
        found.append(run)
    return found


def missing(done: Sequence[Run], blocks: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Block and seed of the runs still to do: all blocks of a seed before the next one."""
    there = {(run["block"], run["seed"]) for run in done}
    wanted = [(block, seed) for seed in range(seeds) for block in blocks]
    return [each for each in wanted if each not in there]


def go_on(
    path: Path, blocks: Sequence[str], seeds: int, train: Train, task: Task = TASK
) -> Iterator[tuple[Run, int]]:
    """Do the runs that are missing; yield each when it is kept, and how many are left.

    Raises
    ------
    StudyError
        If another process is at it, or the file's runs are of another task.
    """
    with _alone(path):
        runs = read(path, task)
        todo = missing(runs, blocks, seeds)
        for number, (block, seed) in enumerate(todo, 1):
            run = {"block": block, "seed": seed, "task": _stated(task)} | train(block, seed, task)
            runs.append(run)
            with atomic_path(path, sync=True) as new:
                new.write_text("".join(json.dumps(each) + "\n" for each in runs), encoding="utf-8")
            yield run, len(todo) - number


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the study's lock, beside `path`, which every run replaces."""
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as file:
        if not claim(file):
            raise StudyError(
                "another process is at this study", got=str(path), advice="wait, or choose --out"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _stated(task: Task) -> Run:
    """The task as JSON has it."""
    stated: Run = json.loads(json.dumps(asdict(task)))
    return stated
