"""What reading large files costs: time and memory, by format, kind and size of the file.

    python -m tests.studies.weights_io.memory [--out tests/studies/weights_io/results/memory.json]

Each file is made in sizes that double, opened, and every array of it kept. Memory is the most that
tracemalloc saw, and the most that a process of its own held beyond what it held before, over the
size of the file; both leave out what any file may take (`FREE_BYTES`). The slope is that of ``log
seconds`` over ``log size``. What is refused for what it asks is read no further.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from tests.weights_io.large_files import FILES

SIZES = tuple(size << 20 for size in (48, 96, 192, 384))
FREE_BYTES = weights_io.DEFAULT_LIMITS.overlap_bytes  # what even the smallest file may ask for
RUNS = 4


def read(path: Path) -> str | None:
    """Open a file and keep all its arrays; what it was refused for, if it was."""
    try:
        with weights_io.open_weights(path) as archive:
            kept = [lazy.read() for lazy in _lazy(archive.root)]
            assert kept
    except weights_io.ReportedError as error:
        return str(error)[:100]
    return None


def _lazy(node: Any) -> list[weights_io.LazyArray]:
    if isinstance(node, weights_io.LazyArray):
        return [node]
    if isinstance(node, dict):
        node = list(node.values())
    return [each for item in node for each in _lazy(item)] if isinstance(node, list) else []


def traced(path: Path) -> int:
    """The most bytes that tracemalloc saw while the file was read."""
    tracemalloc.start()
    try:
        read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident(path: Path) -> int:
    """The most bytes that a forked process held beyond what it began with."""
    ends, told = os.pipe()
    if os.fork() == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the most it held begins anew
        before = _most_held()
        read(path)
        os.write(told, str(_most_held() - before).encode())
        os._exit(0)
    os.close(told)
    with os.fdopen(ends) as words:
        most = int(words.read())
    os.wait()
    return most


def _most_held() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measured(make: Callable[[int], bytes], sizes: tuple[int, ...]) -> dict[str, Any]:
    """The costs of a file in each size, their slope, and the worst ratio of memory."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            path.write_bytes(make(size))
            seconds = []
            for _ in range(RUNS):
                began = time.process_time()
                refused = read(path)
                seconds.append(time.process_time() - began)
            row: dict[str, Any] = {"bytes": path.stat().st_size, "seconds": round(min(seconds), 4)}
            rows.append(row | {"traced": traced(path), "resident": resident(path)})
            rows[-1]["refused"] = refused
    slope = np.polyfit([log2(r["bytes"]) for r in rows], [log2(r["seconds"]) for r in rows], 1)[0]
    most = {
        what: round(max((row[what] - FREE_BYTES) / row["bytes"] for row in rows), 2)
        for what in ("traced", "resident")
    }
    return {"slope": round(float(slope), 2), "ratio": most, "rows": rows}


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    table: dict[str, Any] = {}
    for name, make in FILES.items():
        if options.only not in name:
            continue
        found = table[name] = measured(make, SIZES)
        last = found["rows"][-1]
        print(
            f"{name:34}{last['bytes'] / 1e6:7.1f} MB{last['seconds']:8.3f} s  slope "
            f"{found['slope']:5.2f}  memory {found['ratio']['traced']:5.2f} traced "
            f"{found['ratio']['resident']:5.2f} resident  {last['refused'] or 'read'}",
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
