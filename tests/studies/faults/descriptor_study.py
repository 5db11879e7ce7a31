"""Ten thousand failing system calls: ``python -m tests.studies.faults.descriptor_study [FAULTS]``.

So many in all, over the jobs of `tests.faults.descriptors`. Writes ``results/descriptors.json``
beside this file, after every piece: it may be stopped, and goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.cli.runner import ROOT, environment
from tests.faults.descriptors import ALL

FAULTS, PIECE = 10_000, 100
_QUICK = {"files": 2000}  # of the jobs that take milliseconds, larger pieces
RESULTS = Path(__file__).parent / "results" / "descriptors.json"


def results() -> dict[str, dict[str, Any]]:
    """What was found so far."""
    if not RESULTS.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def add(name: str, shim: Path, folder: Path) -> None:
    """A piece of further faults of a job, in a process of their own."""
    found = results()
    known = found.get(name, {"faults": 0, "calls": 0, "failed": {}, "raised": {}, "lost": []})
    asked = [name, str(folder), str(_QUICK.get(name, PIECE)), str(known["faults"])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.descriptors", *asked],
        env=environment() | {"LD_PRELOAD": str(shim), "REPVGG_WORKERS": "threads"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what Python says of errors in finalizers
        check=True,
    )
    more = json.loads(done.stdout.splitlines()[-1])
    found[name] = {
        "faults": known["faults"] + more["faults"],
        "calls": more["calls"],
        "failed": dict(sorted((Counter(known["failed"]) + Counter(more["failed"])).items())),
        "raised": dict(Counter(known["raised"]) + Counter(more["raised"])),
        "lost": known["lost"] + more["lost"],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(count: str = str(FAULTS)) -> int:
    """Let calls fail until `count` have, the jobs in turn; 1 if any descriptor was lost."""
    with tempfile.TemporaryDirectory() as place:
        shim, source = Path(place) / "shim.so", ROOT / "tests" / "faults" / "shim.c"
        build = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"]
        subprocess.run(build, check=True)
        for name in ALL:
            (Path(place) / name).mkdir()
        while sum(each["faults"] for each in results().values()) < int(count):
            for name in ALL:
                add(name, shim, Path(place) / name)
                print({key: each["faults"] for key, each in results().items()}, flush=True)
    return int(any(each["lost"] for each in results().values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
