"""What INT8 costs trained digits, and does advice help as much as it says? Measured in integers.

    python -m tests.studies.integer.advice_study RUNS

RUNS holds the folders that `advice_runs.sh` makes: networks of real digits, trained with the
command line by one recipe. `parts` parts the pictures: training sees the first part only, `advise`
takes ranges from it and counts gains on the second, and what is measured comes from the third.
Beside the networks as trained stand equal ones whose channels were made uneven, as identity
branches do on ImageNet: random channels times up to 100, the next layer's inputs divided, so that
the float network is the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.integer.advise import Advice, advise
from repvgg_ref.integer.equalize import equalize, scale_channels
from repvgg_ref.integer.quantize import LINEAR, as_chain, calibrate, quantize
from repvgg_ref.integer.simulate import layer_names, sqnr
from repvgg_ref.integer.trial import Simulation, Trial
from repvgg_ref.models.network import Model
from tests.studies.integer.advice_report import RESULTS, write_report
from tests.studies.integer.parts import Inputs, Parts, inputs

FACTORS = (10, 20, 30, 50, 100)
SEEDS = range(3)
RANGES = 256  # images of the training part
NETWORKS = {
    "mnist": ("repvgg", "custom-l2", "qarepvgg"),
    "digits": ("repvgg", "qarepvgg"),
}


def uneven(model: Model, factor: float, seed: int) -> Model:
    """An equal fused network with a tenth of each layer's channels up to `factor` times as wide."""
    deploy = as_chain(model)
    params = {name: array.astype(np.float64) for name, array in deploy.params.items()}
    rng = np.random.default_rng(seed)
    names = layer_names(deploy)
    for first, second in pairwise(names):
        channels = len(params[f"{first}.fused.bias"])
        scale = np.where(rng.random(channels) < 0.1, factor ** rng.random(channels), 1.0)
        scale_channels(params, first, second, scale)
    return replace(deploy, params={k: v.astype(np.float32) for k, v in params.items()})


def measured(model: Model, seen: Array, test: Inputs, kept: Sequence[str]) -> list[Simulation]:
    """Every way on held-out images, computed in integers.

    Mixed networks are no integer networks: their layers in integers are simulated.
    """
    deploy = as_chain(model)
    wanted = deploy.forward(test.x)

    def integers(name: str, which: Model, *, per_tensor: bool) -> Simulation:
        network = quantize(which, seen, per_tensor=per_tensor, rounding="float-even")
        logits = network[LINEAR].output.real(network.forward(test.x)[LINEAR])
        return _judged(name, logits, wanted, test.labels)

    even, _ = equalize(deploy)
    found = [
        _judged("float", wanted, wanted, test.labels),
        integers("per-tensor", deploy, per_tensor=True),
        integers("equalized", even, per_tensor=True),
        integers("per-channel", deploy, per_tensor=False),
        integers("equalized per-channel", even, per_tensor=False),
    ]
    if kept:
        ranges = calibrate(deploy, seen, method="min-max")
        trial = Trial(deploy, ranges, test.x, test.labels, wanted)
        rest = [name for name in layer_names(deploy) if name not in kept]
        found.append(trial.judged("mixed", rest, per_tensor=False))
    return found


def row(name: str, model: Model, parts: Parts, *, factor: int, seed: int) -> dict[str, Any]:
    """Predicted and measured, side by side."""
    seen = parts.training.x[:RANGES]
    advice = advise(model, *parts.held_out, ranges_from=seen)
    kept = [layer.name for layer in advice.layers if layer.keep_fp16]
    # What a prediction from as many images that were trained on would have said
    known = Inputs(*(each[-len(parts.held_out.x) :] for each in parts.training))
    deploy = as_chain(model)
    trial = Trial(deploy, calibrate(deploy, seen, method="min-max"), *known)
    layers = layer_names(deploy)
    trained = [trial.judged("float", [], per_tensor=False)] + [
        trial.judged(way, layers, per_tensor=way == "per-tensor")
        for way in ("per-tensor", "per-channel")
    ]
    return {
        "network": name,
        "factor": factor,
        "seed": seed,
        "kept": kept,
        "predicted": _said(advice.simulated),
        "predicted_from_training": _said(trained),
        "measured": _said(measured(model, seen, parts.test, kept)),
        "widest_over_median": max(layer.range_ratio for layer in advice.layers),
        "rank_correlation": _number(advice),
        "advice": list(advice.steps),
    }


def rows(runs: Path) -> Iterator[dict[str, Any]]:
    """Networks as trained; those with three branches with uneven channels, too."""
    for data, names in NETWORKS.items():
        parts = inputs(data, runs / f"{data}-parts")
        for name in names:
            model = rr.load(runs / f"{data}-{name}" / "train.pth")
            yield row(f"{data} {name}", model, parts, factor=1, seed=0)
        model = rr.load(runs / f"{data}-repvgg" / "train.pth")
        for factor in FACTORS:
            for seed in SEEDS:
                other = uneven(model, factor, 100 * factor + seed)
                yield row(f"{data} repvgg", other, parts, factor=factor, seed=seed)


def main() -> None:
    """All rows as JSON, tables and a picture."""
    found = []
    for each in rows(Path(sys.argv[1])):
        found.append(each)
        print(each["network"], each["factor"], each["seed"], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "advice.json").write_text(json.dumps(found, indent=1) + "\n")
    write_report(found, RESULTS)


def _judged(name: str, logits: Array, wanted: Array, labels: Array) -> Simulation:
    found = logits.argmax(1)
    return Simulation(name, sqnr(wanted, logits), found == wanted.argmax(1), found == labels)


def _said(simulated: Sequence[Simulation]) -> dict[str, Any]:
    naive = next(each for each in simulated if each.name == "per-tensor")
    return {each.name: each.to_json(naive) for each in simulated}


def _number(advice: Advice) -> float | None:
    return advice.rank_correlation if np.isfinite(advice.rank_correlation) else None


if __name__ == "__main__":
    main()
