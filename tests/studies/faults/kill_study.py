"""A thousand SIGKILLs of each job: ``python -m tests.studies.faults.kill_study [KILLS [JOB ...]]``.

At random moments, and, of those called ``JOB-at-calls``, before system calls drawn at random.
Writes ``results/kills.json`` beside this file, after every fifty kills: it may be stopped, and goes
on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.killed import JOBS

KILLS, PIECE = 1000, 50
RESULTS = Path(__file__).parent / "results" / "kills.json"
AT_CALLS = "-at-calls"
_SHIM = Path(__file__).parents[2] / "faults" / "shim.c"


def results() -> dict[str, dict[str, Any]]:
    """What was found so far."""
    if not RESULTS.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def add(name: str, count: int, shim: Path) -> dict[str, Any]:
    """`count` further kills of a job; all that were found of it."""
    seed = int(results().get(name, {}).get("kills", 0))
    job = name.removesuffix(AT_CALLS)
    way, loaded = ("moments", "") if job == name else ("calls", str(shim))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.killed", job, folder, str(count), str(seed), way],
            env=os.environ | {"LD_PRELOAD": loaded},
            stdout=subprocess.PIPE,
            check=True,
        )
    more = json.loads(done.stdout.splitlines()[-1])
    found = results()
    before = found.get(name, {"kills": 0, "too_late": 0, "with_litter": 0, "wrong": []})
    sums = {key: before[key] + more[key] for key in ("kills", "too_late", "with_litter", "wrong")}
    found[name] = more | sums
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found[name]


def main(count: str = str(KILLS), *names: str) -> int:
    """Kill until every job was killed `count` times; 1 if anything was wrong after one."""
    os.environ["REPVGG_WORKERS"] = "threads"  # whose processes would outlive a kill by seconds
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder, "shim.so")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, _SHIM, "-ldl"], check=True)
        for name in names or (*JOBS, *(job + AT_CALLS for job in JOBS)):
            while (left := int(count) - results().get(name, {}).get("kills", 0)) > 0:
                print(name, add(name, min(PIECE, left), shim), flush=True)
    return int(any(found["wrong"] for found in results().values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
