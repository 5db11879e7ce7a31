"""Training dumps, right and wrong, held against the oracle: false alarms, places, names, values.

    python -m tests.studies.peers.training_study [--networks ...] [--seeds N] [--out FILE.json]

Right ports must agree, and what they use of the allowance is the calibration of the yardstick.
Wrong ones must be caught; the first wrong array must be where the bug sits (placed); bugs of the
library and settings must be named, estimates lie within three standard errors, and what is neither
must be called unknown or, where it is equal to it on this data, by a bug's name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.distinguishing import TRAINING, distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_labels, golden_inputs
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.steps import TrainingSteps, training_steps
from tests.models.small import SMALL
from tests.peers.torch_training import dump_of
from tests.studies.peers.training_right import RIGHT
from tests.studies.peers.training_wrong import UNKNOWN, WRONG, Wrong

RELATIVE = ("weight-decay-factor", "weight-decay-on-batch-norm")  # stated as multiples


def case_of(network: str, seed: int) -> tuple[Model, TrainingSteps]:
    """A model of a small network and its right steps."""
    arch = SMALL[network]
    x = golden_inputs(arch, seed=seed)
    model = distinguishing_model(arch, seed, x=x, statistics=TRAINING)
    return model, training_steps(model, x, distinguishing_labels(arch, len(x), seed=seed))


def right_rows(model: Model, steps: TrainingSteps) -> Iterator[dict[str, Any]]:
    """One row a correct port: its verdict and what it used."""
    for name, port in RIGHT.items():
        report = judge_training(steps, port(model, steps), model=model)
        most = max(report.layers, key=lambda layer: layer.likely_ratio)
        yield {
            "port": name,
            "verdict": report.verdict,
            "used": round(float(most.likely_ratio), 4),
            "at": most.name,
        }


def wrong_rows(
    model: Model, steps: TrainingSteps, names: Iterable[str] = WRONG
) -> Iterator[dict[str, Any]]:
    """One row a wrong port: what was said of it."""
    for name in names:
        wrong = WRONG[name]
        dump = dump_of(model, steps, torch.float32, wrong.plant)
        report = judge_training(steps, dump, model=model)
        first = report.first_bad_layer or ""
        found = {f.bug: (f.estimate, f.standard_error) for f in report.diagnosis}
        top = report.diagnosis[: max(1, len(wrong.bugs))]
        names_given = [{f.bug, *f.equivalents} for f in top]
        yield {
            "port": name,
            "caught": report.verdict == "disagree",
            "placed": first.startswith(wrong.first),
            "first": first,
            "named": _named(wrong, names_given),
            "said": [finding.says for finding in top],
            "values": {
                bug: _off(steps, bug, wanted, found.get(bug))
                for bug, wanted in wrong.values.items()
            },
        }


def _named(wrong: Wrong, given: list[set[str]]) -> bool:
    """Every bug under one of its names; unknown where there is none to name."""
    if not wrong.bugs:
        return given == [{"unknown"}]
    return all(any(bug & names for names in given) for bug in wrong.bugs)


def _off(
    steps: TrainingSteps, bug: str, wanted: float, found: tuple[float | None, float | None] | None
) -> dict[str, float | None]:
    """The estimate, its standard error, and how many of these it is off by."""
    if found is None or found[0] is None:
        return {"wanted": wanted, "estimate": None, "error": None, "off": None}
    if bug in RELATIVE:
        wanted = wanted * steps.recipe.weight_decay
    estimate, error = found[0], found[1] or 0.0
    off = abs(estimate - wanted) / error if error > 0 else (0.0 if estimate == wanted else 1e9)
    return {"wanted": wanted, "estimate": estimate, "error": error, "off": off}


def summary(right: list[dict[str, Any]], wrong: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures."""
    known = [row for row in wrong if row["port"] not in UNKNOWN]
    unknown = [row for row in wrong if row["port"] in UNKNOWN]
    values = [value for row in wrong for value in row["values"].values()]
    return {
        "right": len(right),
        "false alarms": sum(row["verdict"] != "agree" for row in right),
        "most used": max((row["used"] for row in right), default=0.0),
        "wrong": len(wrong),
        "caught": sum(row["caught"] for row in wrong),
        "caught and placed": sum(row["caught"] and row["placed"] for row in wrong),
        "known": len(known),
        "known named": sum(row["named"] for row in known),
        "others": len(unknown),
        "others called unknown": sum(row["named"] for row in unknown),
        "values": len(values),
        "values within three standard errors": sum(
            value["off"] is not None and value["off"] <= 3 for value in values
        ),
    }


def main() -> None:
    """Run the study and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["plain"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[11])
    parser.add_argument("--only", nargs="*", default=list(WRONG))
    parser.add_argument("--no-right", action="store_true")
    parser.add_argument("--no-wrong", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    right: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for seed in chosen.seeds:
        for network in chosen.networks:
            model, steps = case_of(network, seed)
            where = {"network": network, "seed": seed}
            if not chosen.no_right:
                right += [where | row for row in right_rows(model, steps)]
            for row in () if chosen.no_wrong else wrong_rows(model, steps, chosen.only):
                wrong.append(where | row)
                off = [value["off"] for value in row["values"].values()]
                if not (row["caught"] and row["placed"] and row["named"]) or any(
                    value is None or value > 3 for value in off
                ):
                    console.print(where | row)
    console.print([row for row in right if row["verdict"] != "agree"])
    figures = summary(right, wrong)
    console.print(figures)
    if chosen.out:
        text = json.dumps({"figures": figures, "right": right, "wrong": wrong}, indent=1)
        chosen.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
