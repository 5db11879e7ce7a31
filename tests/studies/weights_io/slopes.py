"""How the time of reading grows with the file: ``python -m tests.studies.weights_io.slopes``.

Each kind of `tests.weights_io.large_files` is made in sizes from 1 to 32 MB, opened, and every
array of it read. Written down is the least processor time of several readings, kinds in turn, so
that what else the machine does falls on all sizes alike, and the slope of ``log seconds`` over
``log size``. Writes ``results/slopes.json`` beside this file, after every kind; with words, of the
kinds alone whose names have one of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from tests.studies.weights_io.memory import read
from tests.weights_io.large_files import FILES

SIZES = tuple(1 << exponent for exponent in range(20, 26))
RUNS = 7
MOST = 1.1
RESULTS = Path(__file__).parent / "results" / "slopes.json"


def measured(name: str) -> dict[str, Any]:
    """The least seconds for each size, and the slope."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{size}") for size in SIZES]
        for path, size in zip(paths, SIZES, strict=True):
            path.write_bytes(FILES[name](size))
        seconds = [float("inf")] * len(SIZES)
        for _ in range(RUNS):
            for at, path in enumerate(paths):
                began = time.process_time()
                read(path)
                seconds[at] = min(seconds[at], time.process_time() - began)
        sizes = [path.stat().st_size for path in paths]
        refused = read(paths[-1])
    slope = np.polyfit([log2(size) for size in sizes], [log2(each) for each in seconds], 1)[0]
    told = [round(each, 5) for each in seconds]
    return {"slope": round(float(slope), 2), "bytes": sizes, "seconds": told, "refused": refused}


def main(*words: str) -> int:
    """Measure, and print a line a kind; 1 if a slope is above what it may be."""
    table: dict[str, Any] = {}
    if RESULTS.exists():
        table = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in FILES:
        if words and not any(word in name for word in words):
            continue
        found = table[name] = measured(name)
        print(f"{name:36}slope {found['slope']:5.2f}  {found['seconds']}", flush=True)
        RESULTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return int(any(found["slope"] > MOST for found in table.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
