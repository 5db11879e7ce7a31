"""What reading and inspecting hostile files costs: seconds, memory and calls against their size.

    python -m tests.studies.weights_io.cost [--out tests/studies/weights_io/results/cost.json]

Each family of `tests.weights_io.floods` is made in sizes that double up to 1 MB. Calls of functions
are counted, in files of an eighth of the size (they do not depend on the machine); processor time
is the best of two runs, memory tracemalloc's peak beyond the file itself. The slope is that of
``log cost`` over ``log size``, fitted over the upper half of the sizes: 1 is linear, less is a file
that is refused soon.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from math import log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.errors import ReportedError
from repvgg_ref.files.convert import convert
from repvgg_ref.files.inspect import inspect_file
from tests.weights_io import floods
from tests.weights_io.counting import calls_of
from tests.weights_io.refusal import read_everything
from weights_io import save_weights

RUNS = 2
TIES_EPS = 2.0**-17
Run = Callable[[bytes], object]


class Cost(NamedTuple):
    """Of one file."""

    file_bytes: int
    calls: int
    seconds: float
    peak_bytes: int
    refused: str | None


def families() -> Iterator[tuple[str, Callable[[int], bytes], Run]]:
    """Name, maker of a file of about so many bytes, and what is done with it."""
    for name, make in floods.READING.items():
        yield f"read: {name}", make, read_everything
    for name, make in floods.NAMING.items():
        yield f"inspect: {name}", make, _on_disk(inspect_file)
    yield "convert: ties", ties, _on_disk(_converted)


def ties(size: int) -> bytes:
    """A block whose every tap times 1.5 is halfway between two float32 numbers."""
    channels = max(1, int((size / 40) ** 0.5))
    rng, state = np.random.default_rng(0), {}
    for branch, kernel in (("rbr_dense", 3), ("rbr_1x1", 1)):
        shape = (channels, channels, kernel, kernel)
        odd = 2 * rng.integers(0, 2**22, shape) + 1
        state[f"stage0.{branch}.conv.weight"] = (1 + odd * 2.0**-23).astype(np.float32)
        for field, value in _UNIT_NORM.items():
            state[f"stage0.{branch}.bn.{field}"] = np.full(channels, value, np.float32)
    state["linear.weight"] = np.ones((1, channels), np.float32)
    state["linear.bias"] = np.ones(1, np.float32)
    file = BytesIO()
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.npz")
        save_weights(path, state, container="npz")
        file.write(path.read_bytes())
    return file.getvalue()


_UNIT_NORM = {"weight": 1.5, "bias": 0, "running_mean": 0, "running_var": 1 - TIES_EPS}


def _converted(path: Path) -> None:
    convert(path, path.with_name("out.npz"), eps=TIES_EPS, model="custom")


def _on_disk(run: Callable[[Path], object]) -> Run:
    def on_disk(data: bytes) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "file.pth")
            path.write_bytes(data)
            run(path)

    return on_disk


def cost_of(make: Callable[[int], bytes], size: int, run: Run) -> Cost:
    """Measure the file of one size; calls in one of an eighth, since counting is slow."""
    data, small = make(size), make(size // 8)
    refused = None
    seconds = []
    for _ in range(RUNS):
        started = time.process_time()
        try:
            run(data)
        except ReportedError as error:
            refused = str(error)[:80]
        seconds.append(time.process_time() - started)
    tracemalloc.start()
    with suppress(ReportedError):
        run(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Cost(len(data), calls_of(lambda: run(small)), min(seconds), peak, refused)


def slope(costs: list[Cost], field: str) -> float:
    """Of the logarithms of a cost and of the size, over the upper half of the sizes."""
    upper = costs[len(costs) // 2 :]
    sizes = np.array([log2(cost.file_bytes) for cost in upper])
    spent = np.array([log2(max(getattr(cost, field), 1e-6)) for cost in upper])
    return float(np.polyfit(sizes, spent, 1)[0])


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    sizes = [options.largest // 2**k for k in (3, 2, 1, 0)]
    table: dict[str, Any] = {}
    for name, make, run in families():
        if options.only not in name:
            continue
        costs = [cost_of(make, size, run) for size in sizes]
        slopes = {field: round(slope(costs, field), 2) for field in ("calls", "seconds")}
        worst = costs[-1]
        table[name] = {"slopes": slopes, "costs": [cost._asdict() for cost in costs]}
        print(
            f"{name:36}{worst.file_bytes / 1e6:6.2f} MB{max(c.seconds for c in costs):7.3f} s"
            f"{max(c.peak_bytes for c in costs) / 1e6:7.1f} MB  slope of calls "
            f"{slopes['calls']:5.2f}, of time {slopes['seconds']:5.2f}  {worst.refused or 'read'}",
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
