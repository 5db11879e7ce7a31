"""Choosing algorithms by measurement, once a machine: times are kept in the user's cache folder.

The file is JSON: processor and library -> shape and threads -> algorithm -> seconds. A file that
cannot be read or written is no error; then the measurement is done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.cpu.convolution.algorithms import (
    DEFAULT_CHOICES,
    Algorithm,
    applies,
    make_convolution,
)
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.workers.pool import Pool

ROUNDS = 3
FOLDER = "REPVGG_CACHE_DIR"
ENGINE = 2  # raised when an algorithm changes so that its old times mean nothing


def cache_file() -> Path:
    """``autotune.json`` in ``REPVGG_CACHE_DIR``, else in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get(FOLDER) or Path(base) / "repvgg-ref") / "autotune.json"


class Tuner:
    """Measures each candidate for a shape the first time that it is asked for.

    Parameters
    ----------
    pool : Pool
        The threads that will do the work.
    dtype : float32 or float64
    choices : algorithms to try
    """

    def __init__(
        self, pool: Pool, dtype: Any, choices: tuple[Algorithm, ...] = DEFAULT_CHOICES
    ) -> None:
        self._pool, self._dtype, self._choices = pool, np.dtype(dtype), choices
        system = f"{platform.machine()} {_processor()}"
        self._machine = f"{system} numpy {np.__version__} engine {ENGINE}"
        self._known = _read()

    def choose(self, shape: ConvShape) -> Algorithm:
        """The fastest of the choices for `shape`, known or measured now."""
        times = self._times(shape)
        return min((a for a in self._choices if a in times), key=times.__getitem__)

    def _times(self, shape: ConvShape) -> dict[str, float]:
        key = f"{astuple(shape)} {self._dtype} threads {self._pool.threads}"
        known = self._known.setdefault(self._machine, {}).setdefault(key, {})
        missing = [a for a in self._choices if applies(a, shape) and a not in known]
        if missing:
            known |= self._measure(shape, missing)
            _write(self._known)
        return known

    def _measure(self, shape: ConvShape, algorithms: list[Algorithm]) -> dict[str, float]:
        """Best of interleaved rounds, so that other work on the machine hits all alike."""
        rng = np.random.default_rng(0)
        size = (shape.outputs, shape.channels // shape.groups, shape.kernel, shape.kernel)
        weight = rng.standard_normal(size).astype(self._dtype)
        ready = {}
        for algorithm in algorithms:
            conv = make_convolution(shape, weight, algorithm, self._pool.threads, {}, "")
            height, width = (max(pair) for pair in zip(conv.padded, shape.reach, strict=True))
            x = np.zeros((shape.images, height, width, shape.channels), self._dtype)
            y = np.empty((shape.images, shape.height, shape.width, shape.outputs), self._dtype)
            bias, arena = np.zeros(shape.outputs, self._dtype), np.empty(conv.scratch, self._dtype)
            ready[algorithm] = list(conv.stages(x, y, bias, arena, relu=True))
        best: dict[str, float] = {}
        with self._pool.session():
            for _ in range(ROUNDS + 1):  # the first round prepares views and touches memory
                for algorithm, stages in ready.items():
                    began = time.perf_counter()
                    for stage in stages:
                        self._pool.run(stage)
                    seconds = time.perf_counter() - began
                    best[algorithm] = min(seconds, best.get(algorithm, seconds))
        return best


def _processor() -> str:
    """What tells this processor from another."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _read() -> dict[str, dict[str, dict[str, float]]]:
    try:
        path = cache_file()  # a FIFO of that name would never end
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(known, dict) and all(
        isinstance(seconds, int | float)
        for shapes in known.values()
        for times in (shapes.values() if isinstance(shapes, dict) else [None])
        for seconds in (times.values() if isinstance(times, dict) else [None])
    )
    return known if sound else {}


def _write(known: dict[str, dict[str, dict[str, float]]]) -> None:
    """Atomically, so that two processes cannot mix their files."""
    path = cache_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
        beside.replace(path)
