"""A thousand SIGKILLs of each job: ``python -m tests.studies.faults.kill_study [KILLS [JOB ...]]``.

Writes ``results/kills.json`` beside this file, after every twenty kills: it may be stopped, and
goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.killed import JOBS, kills

KILLS, PIECE = 1000, 20
RESULTS = Path(__file__).parent / "results" / "kills.json"


def results() -> dict[str, dict[str, Any]]:
    """What was found so far."""
    if not RESULTS.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def add(name: str, count: int) -> dict[str, Any]:
    """`count` further kills of a job; all that were found of it."""
    seed = int(results().get(name, {}).get("kills", 0))
    with tempfile.TemporaryDirectory() as folder:
        more = kills(JOBS[name](Path(folder)), count, np.random.default_rng([2101, seed]))
    found = results()
    before = found.get(name, {"kills": 0, "too_late": 0, "with_litter": 0, "wrong": []})
    found[name] = {key: before[key] + more[key] for key in before if key != "seconds"}
    found[name]["seconds"] = more["seconds"]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found[name]


def main(count: str = str(KILLS), *names: str) -> int:
    """Kill until every job was killed `count` times; 1 if anything was wrong after one."""
    os.environ["REPVGG_WORKERS"] = "threads"  # whose processes would outlive a kill by seconds
    for name in names or JOBS:
        while (left := int(count) - results().get(name, {}).get("kills", 0)) > 0:
            print(name, add(name, min(PIECE, left)), flush=True)
    return int(any(found["wrong"] for found in results().values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
