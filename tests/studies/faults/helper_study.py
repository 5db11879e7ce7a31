"""Every attack on the helpers of a caller: ``python -m tests.studies.faults.helper_study [WORD]``.

Writes ``results/helpers.json`` beside this file: of each case of `tests.faults.attacks` (with WORD:
of those whose names have it) the slowest call, how many there were, what was warned of, and what
was wrong. The exit status is 1 if anything was.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.attacks import CASES
from tests.faults.test_helpers import attacked, judge

RESULTS = Path(__file__).parent / "results" / "helpers.json"


def main(word: str = "") -> int:
    """Run them, and write what came of each."""
    told: dict[str, Any] = {}
    if RESULTS.exists():
        told = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, case in CASES.items():
        if word not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = attacked(name, Path(folder))
        found["wrong"] = judge(case, found)
        found["warnings"] = sorted(set(found["warnings"]))
        told[name] = found
        print(name, found, flush=True)
        RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(any(found["wrong"] for found in told.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
