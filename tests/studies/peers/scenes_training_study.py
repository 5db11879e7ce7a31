"""Training dumps of PSPNets in torch, right and wrong, held against the oracle.

    python -m tests.studies.peers.scenes_training_study [--names ...] [--out FILE.json]

Right ports must agree, in float32 and float64; wrong ones must be caught, the first wrong array
must be where the bug sits, and the bug be named where the library has its name. A small network,
whose steps take milliseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.judge import judge_training
from tests.oracle.training import scenes
from tests.peers.scenes_ports import Port
from tests.studies.peers.scenes_plants import Plant
from tests.studies.peers.scenes_right import RIGHT
from tests.studies.peers.scenes_wrong import WRONG

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def dump_of(plant: Plant, dtype: Any = torch.float32) -> dict[str, Array]:
    """What a port of the small network dumps."""
    model, steps = scenes.case()
    port = Port(model.state_dict(), steps, dtype)
    plant(port)
    return port.dump()


def right_rows() -> Iterator[dict[str, Any]]:
    """One row a right port and precision: its verdict and what it used of the allowance."""
    _, steps = scenes.case()
    for name, plant in RIGHT.items():
        for called, dtype in PRECISIONS.items():
            report = judge_training(steps, dump_of(plant, dtype))
            most = max(report.layers, key=lambda layer: layer.likely_ratio)
            used = round(float(most.likely_ratio), 4)
            yield {
                "port": f"{name}, {called}",
                "verdict": report.verdict,
                "used": used,
                "at": most.name,
            }


def wrong_rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a wrong port: what was said of it."""
    model, steps = scenes.case()
    for name in names:
        wrong = WRONG[name]
        report = judge_training(steps, dump_of(wrong.plant), model=model)
        first = report.first_bad_layer or ""
        found = report.diagnosis[0] if report.diagnosis else None
        given = {found.bug, *found.equivalents} if found else set()
        yield {
            "port": name,
            "caught": report.verdict == "disagree",
            "placed": first.startswith(wrong.first),
            "first": first,
            "named": bool(given & wrong.names),
            "called": sorted(given),
            "says": found.says if found else "",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=list(WRONG))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    right, wrong = list(right_rows()), list[dict[str, Any]]()
    for row in wrong_rows(asked.names):
        wrong.append(row)
        faults = [key for key in ("caught", "placed", "named") if not row[key]]
        print(row["port"], row["first"], row["called"], *(f"not {fault}!" for fault in faults))
    accused = [row["port"] for row in right if row["verdict"] != "agree"]
    found: dict[str, Any] = {"accused": accused, "right": len(right), "wrong": len(wrong)}
    found |= {key: sum(row[key] for row in wrong) for key in ("caught", "placed", "named")}
    found["unknown"] = sum(row["called"] == ["unknown"] for row in wrong)
    print(json.dumps(found))
    if asked.out:
        rows = {"right_ports": right, "wrong_ports": wrong}
        asked.out.write_text(json.dumps(found | rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
