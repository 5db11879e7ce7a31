"""A contender's own process: prepares a network, then does what it is told, line by line.

Started as `main`, on '{"entry": {...}, "variant": "frozen", "task": {...}}'.
One JSON object a line on stdin, one on stdout for each. A process for each contender, because
frameworks bring OpenMP runtimes and thread pools that hurt each other, because a crash must end
one contender only, and because memory can be told apart in no other way.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from repvgg_ref.bench.contenders.base import Contender, Entry
from repvgg_ref.bench.memory import peak_bytes, reset_peak, resident_bytes, settle_memory
from repvgg_ref.bench.task import Task
from repvgg_ref.cpu.workers.crew import use_of_helpers
from repvgg_ref.errors import ReportedError

PAUSE = 0.02  # seconds; thread pools spin for a while after their work
LONGEST_PAUSE = 1.0
QUIET = 0.1  # of a processor


def serve(job: Mapping[str, Any], orders: IO[str], answers: IO[str]) -> None:
    """Prepare what `job` says, say "ready", then answer orders until there are no more."""
    entry, task = Entry(**job["entry"]), Task(**job["task"])
    for module in entry.needs:
        importlib.import_module(module)
    settle_memory()
    baseline = resident_bytes()
    contender = entry.prepare(task, job["variant"])
    settle_memory()
    loaded = resident_bytes()
    resets = reset_peak()
    _answer(answers, {"ready": True, "baseline": baseline, "loaded": loaded, "resets": resets})
    commands: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "outputs": lambda order: _outputs(contender, order["path"]),
        "turn": lambda order: _turn(contender, order["repeats"]),
        "peak": lambda order: {"peak": peak_bytes() + use_of_helpers()[1]},
        "count": lambda order: contender.count(),
        "layers": lambda order: contender.layers(order["rounds"]) if contender.layers else {},
    }
    for order in _lines(orders):
        _answer(answers, commands[order["do"]](order))


def _outputs(contender: Contender, path: str) -> dict[str, Any]:
    """One run; what it computes goes to a file."""
    found = contender.run()
    contender.sync()
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in contender.outputs(found).items()}
    np.savez(path, **arrays)
    return {"names": list(arrays)}


def _turn(contender: Contender, repeats: int) -> dict[str, Any]:
    """Wall-clock and processor seconds of one run, the mean of `repeats`; then wait for quiet."""
    cpu, wall = _processor_seconds(), time.perf_counter()
    for _ in range(repeats):
        contender.run()
    contender.sync()
    wall, cpu = time.perf_counter() - wall, _processor_seconds() - cpu
    return {"seconds": wall / repeats, "cpu_seconds": cpu / repeats, "waited": _settle()}


def _processor_seconds() -> float:
    return time.process_time() + use_of_helpers()[0]


def _settle() -> float:
    """Wait until our threads have stopped spinning, so that the next contender is undisturbed."""
    waited = 0.0
    while waited < LONGEST_PAUSE:
        busy = time.process_time()
        time.sleep(PAUSE)
        waited += PAUSE
        if time.process_time() - busy <= QUIET * PAUSE:
            break
    return waited


def _lines(orders: IO[str]) -> Iterator[dict[str, Any]]:
    for line in orders:
        yield json.loads(line)


def _answer(answers: IO[str], value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main() -> None:
    """Keep stdout for answers: a framework that prints there writes to stderr instead."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        try:
            serve(json.loads(sys.argv[1]), sys.stdin, answers)
        except ReportedError as error:
            _answer(answers, {"error": str(error)})
