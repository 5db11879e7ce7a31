"""Does advice help as much as it says? Trained digits, measured in integers on held-out images.

    python -m tests.studies.integer.advice_study RUN_REPVGG RUN_QAREPVGG

The runs are folders of `repvgg-ref train --block repvgg|qarepvgg`. Beside the network as trained
stands an equal one whose channels were made uneven, as identity branches do on ImageNet: random
channels times up to 100, the next layer's inputs divided, so that the float network is the same.
Predicted: top-1 that `advise` simulates on training images. Measured: top-1 of the integer network
on the test images, which nothing has seen.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.digits import load_digits, to_input
from repvgg_ref.integer.advise import Advice, advise
from repvgg_ref.integer.equalize import equalize, scale_channels
from repvgg_ref.integer.quantize import LINEAR, as_chain, quantize
from repvgg_ref.integer.simulate import layer_names
from repvgg_ref.models.network import Model

FACTORS = (1, 10, 30, 50, 70, 100)
RESULTS = Path(__file__).parent / "results"


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


def measured(model: Model, calibration: Array, x: Array, labels: Array) -> dict[str, float]:
    """Top-1 on held-out images, computed in integers."""

    def integers(which: Model, per_tensor: bool) -> float:
        network = quantize(which, calibration, per_tensor=per_tensor, rounding="float-even")
        logits = network.forward(x)[LINEAR]
        return float((logits.argmax(1) == labels).mean())

    even, _ = equalize(model)
    return {
        "float": float((model.forward(x).argmax(1) == labels).mean()),
        "per-tensor": integers(model, True),
        "equalized": integers(even, True),
        "per-channel": integers(model, False),
        "equalized per-channel": integers(even, False),
    }


def row(name: str, model: Model, factor: float) -> dict[str, Any]:
    """Predicted and measured, side by side."""
    split = load_digits()
    calibration, labels = to_input(split.train.images[::3]), split.train.labels[::3]
    advice: Advice = advise(model, calibration, labels)
    predicted = {each.name: each.top1 for each in advice.simulated}
    found = measured(model, calibration, to_input(split.test.images), split.test.labels)
    return {
        "network": name,
        "factor": factor,
        "predicted": predicted,
        "measured": found,
        "rank_correlation": advice.rank_correlation,
        "advice": list(advice.steps),
    }


def main() -> None:
    """All rows, as JSON and as a table."""
    runs = dict(zip(("repvgg", "qarepvgg"), map(Path, sys.argv[1:3]), strict=True))
    rows = []
    for name, folder in runs.items():
        model = rr.load(folder / "train.pth")
        rows.append(row(name, model, 1))
        if name == "repvgg":
            rows += [row(name, uneven(model, f, seed=f), f) for f in FACTORS[1:]]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "advice.json").write_text(json.dumps(rows, indent=1) + "\n")
    ways = ("float", "per-tensor", "equalized", "per-channel", "equalized per-channel")
    lines = [
        "# Advice, predicted and measured",
        "",
        "Made by `python -m tests.studies.integer.advice_study`. Top-1 in %, predicted on training",
        "images / measured in integers on held-out digits.",
        "",
        "| network | widest channels | " + " | ".join(ways) + " |",
        "|---|--:|" + "--:|" * len(ways),
    ]
    for each in rows:
        cells = [
            f"{100 * (each['predicted'][way] or 0):.1f} / {100 * each['measured'][way]:.1f}"
            for way in ways
        ]
        lines.append(f"| {each['network']} | x {each['factor']} | " + " | ".join(cells) + " |")
    lines += ["", *gains(rows)]
    (RESULTS / "advice.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def gains(rows: list[dict[str, Any]]) -> list[str]:
    """Whether what was predicted is within a factor of two of what was measured."""
    said = []
    for each in rows:
        for way in ("equalized", "per-channel"):
            wanted = (each["predicted"][way] or 0) - (each["predicted"]["per-tensor"] or 0)
            got = each["measured"][way] - each["measured"]["per-tensor"]
            if wanted > 0.01:
                fits = 0.5 <= got / wanted <= 2
                said.append(
                    f"- {each['network']} x {each['factor']}, {way}: predicted "
                    f"{100 * wanted:+.1f}, measured {100 * got:+.1f} points: "
                    f"{'within' if fits else 'NOT within'} a factor of two"
                )
    return said


if __name__ == "__main__":
    main()
