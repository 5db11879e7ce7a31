"""Kill -9 at thirty random moments: ``python -m tests.studies.train.kill_study``.

Writes ``results/kills.json`` beside this file. Every resume must end with the bits of the training
that was never killed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.train.kills import kill_and_resume, never_killed

KILLS = 30
RESULTS = Path(__file__).parent / "results" / "kills.json"


def main() -> int:
    """Kill, resume, compare; 1 if any resume differed."""
    rng = np.random.default_rng(2024)
    with tempfile.TemporaryDirectory() as folder:
        whole = never_killed(Path(folder) / "whole")
        found: list[dict[str, Any]] = []
        while len(found) < KILLS:
            round_ = kill_and_resume(Path(folder) / str(rng.integers(2**40)), whole, rng)
            print(round_, flush=True)
            if round_["killed"] or not round_["same"]:  # else it ended before the kill came
                found.append(round_)
    summary = {
        "kills": sum(kill["killed"] for kill in found),
        "same_bits": sum(kill["same"] for kill in found),
        "between_state_and_log": sum(kill["steps_logged"] != kill["last_state"] for kill in found),
        "half_written_files_left": sum(kill["half_written_files"] for kill in found),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"summary": summary, "kills": found}, indent=1) + "\n")
    print(summary)
    return int(summary["same_bits"] != KILLS)


if __name__ == "__main__":
    sys.exit(main())
