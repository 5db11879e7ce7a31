"""How much faster N ranks train than one: ``python -m tests.studies.train.scaling_study``.

One thread a rank, the same global batch, rounds interleaved. A step's time is the first decile of
its wall time, which other work on the machine disturbs least. Writes ``results/scaling.json``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from repvgg_ref.train.log import read_log
from tests.cli.runner import ROOT, environment

RANKS = (1, 2)
ROUNDS = 3
BATCH = 256
RESULTS = Path(__file__).parent / "results" / "scaling.json"


def step_seconds(ranks: int, out: Path, *options: str) -> dict[str, float]:
    """First deciles of a step's whole time and of its all-reduce, of a short training."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "repvgg_ref.train"]
    settings = ["--out", str(out), "--epochs", "4", "--batch", str(BATCH), "--threads", "1"]
    subprocess.run(
        [*command, *settings, "--evaluate-every", "9", *options],
        cwd=ROOT,
        env=environment() | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    steps = [record["seconds"] for record in read_log(out) if record["event"] == "step"]
    return {
        "step": _decile([sum(step.values()) for step in steps]),
        "reduce": _decile([step["reduce"] for step in steps]),
    }


def main() -> None:
    """Measure, print, keep."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for ranks in RANKS:
                for name, options in {"own": (), "sync": ("--sync-bn",)}.items():
                    out = Path(folder) / f"{number}-{ranks}-{name}"
                    found.setdefault(f"{ranks}-{name}", []).append(
                        step_seconds(ranks, out, *options)
                    )
    best = {key: min(entry["step"] for entry in entries) for key, entries in found.items()}
    summary = {
        f"efficiency of {ranks} ranks, {name}": round(
            best[f"1-{name}"] / (ranks * best[f"{ranks}-{name}"]), 3
        )
        for ranks in RANKS[1:]
        for name in ("own", "sync")
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"batch": BATCH, "summary": summary, "rounds": found}, indent=1) + "\n"
    )
    print(json.dumps(summary, indent=1))


def _decile(values: list[float]) -> float:
    return round(statistics.quantiles(values, n=10)[0], 6)


if __name__ == "__main__":
    main()
