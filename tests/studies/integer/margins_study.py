"""How should a loss be predicted? Counted or smoothed, on images trained on or held out.

    python -m tests.studies.integer.margins_study RUNS

RUNS as for `advice_study`. Networks of uneven channels, one scale a tensor: the loss in top-1 on
the third part of the pictures, beside what is predicted from the others in several ways. "additive"
adds to every image's float logits the noise of every other one; "by class" regresses integer
logits on float ones and adds what is left of images of the same class: both turn each image's right
or wrong into a probability, so that margins count, not only flips.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.integer.quantize import calibrate
from repvgg_ref.integer.simulate import layer_names
from repvgg_ref.integer.trial import Trial
from repvgg_ref.models.network import Model
from tests.studies.integer.advice_report import RESULTS, size_of
from tests.studies.integer.advice_study import RANGES, uneven
from tests.studies.integer.parts import Inputs, Parts, inputs

DATA, FACTORS, SEEDS = ("mnist", "digits"), (15, 20, 30), range(10)
BUNDLED = "bundled"
FEW = 128  # images that a user may have
SIZES = ((0.0, 0.03), (0.03, 0.1), (0.1, 1.0))
WAYS = ("trained on", "held out", "by class, all", f"{FEW} held out", "additive", "by class")


def counted(z: Array, q: Array, labels: Array) -> float:
    """The share of images that quantisation takes, less those that it gives."""
    return float((z.argmax(1) == labels).mean() - (q.argmax(1) == labels).mean())


def additive(z: Array, q: Array, labels: Array) -> float:
    """With the noise of every image added to every other's float logits."""
    # (N, N, K) = (N, 1, K) + (1, N, K)
    found = (z[:, None] + (q - z)[None]).argmax(2) == labels[:, None]
    return float((z.argmax(1) == labels).mean() - found.mean())


def by_class(z: Array, q: Array, labels: Array) -> float:
    """With a linear map of the float logits, and what it leaves of images of the same class."""
    count, classes = z.shape
    known = np.c_[z, np.ones(count)]
    ridge = 1e-3 * count * np.eye(classes + 1)
    fitted = known @ np.linalg.solve(known.T @ known + ridge, known.T @ q)
    left = (q - fitted) * np.sqrt(count / max(count - classes - 1, 1))
    same = z.argmax(1)[:, None] == z.argmax(1)[None]
    right = (fitted[:, None] + left[None]).argmax(2) == labels[:, None]
    return float((z.argmax(1) == labels).mean() - ((right & same).sum(1) / same.sum(1)).mean())


def rows(runs: Path) -> Iterator[dict[str, Any]]:
    """Measured and predicted losses of every network."""
    for data in DATA:
        parts = inputs(data, runs / f"{data}-parts")
        yield from _losses(data, rr.load(runs / f"{data}-repvgg" / "train.pth"), parts)
    yield from _losses(BUNDLED, rr.load(MODEL_PATH), _bundled())


def _bundled() -> Parts:
    """The bundled model's digits; its test images, drawn at random, are both other parts."""
    split = load_digits()
    training, test = (Inputs(to_input(part.images), part.labels) for part in split)
    return Parts(training, *(Inputs(*(each[i::2] for each in test)) for i in (0, 1)))


def _losses(name: str, model: Model, parts: Parts) -> Iterator[dict[str, Any]]:
    known = Inputs(*(each[-len(parts.held_out.x) :] for each in parts.training))
    for factor in FACTORS:
        for seed in SEEDS:
            other = uneven(model, factor, 1000 * factor + seed)
            ranges = calibrate(other, parts.training.x[:RANGES], method="min-max")
            found = []
            for part in (known, parts.held_out, parts.test):
                trial = Trial(other, ranges, *part)
                q = trial.run(layer_names(other), per_tensor=True)
                found.append((trial.wanted.astype(float), q.astype(float), part.labels))
            few = [each[:FEW] for each in found[1]]
            yield {
                "network": name,
                "factor": factor,
                "seed": seed,
                "measured": counted(*found[2]),
                "trained on": counted(*found[0]),
                "held out": counted(*found[1]),
                "by class, all": by_class(*found[1]),
                f"{FEW} held out": counted(*few),
                "additive": additive(*few),
                "by class": by_class(*few),
            }


def text(found: Sequence[Mapping[str, Any]]) -> str:
    """Means, and root mean square differences, in points."""
    lines = [
        "# How a loss is best predicted",
        "",
        "Made by `python -m tests.studies.integer.margins_study`: losses in top-1, in points, with",
        "one scale a tensor. Means over networks, and in brackets the root mean square difference",
        f"to what was measured on other images. The last two ways smooth, from {FEW} held-out",
        "images, by the logits' margins and noise; `by class, all` does it from all. mnist: 1,000",
        "images of each kind, digits: 360, bundled: 180, of the model that the tool brings along.",
        "Images that were trained on promise no clearly other losses than held-out ones here; what",
        "differs most is how few images lose their class: 5 of 180 are 3 points, give or take 2.",
        "",
        "| network, loss | networks | measured | " + " | ".join(WAYS) + " |",
        "|---|--:|--:|" + "--:|" * len(WAYS),
    ]
    for (low, high), network in product(SIZES, (*DATA, BUNDLED)):
        some = [r for r in found if r["network"] == network and low <= size_of(r) < high]
        if some:
            cells = " | ".join(_cell(some, way) for way in WAYS)
            mean = 100 * np.mean([row["measured"] for row in some])
            name = f"{network}, {100 * low:g} to {100 * high:g}"
            lines.append(f"| {name} | {len(some)} | {mean:.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(some: Sequence[Mapping[str, Any]], way: str) -> str:
    said, measured = (np.array([row[key] for row in some]) for key in (way, "measured"))
    return f"{100 * said.mean():.2f} ({100 * np.sqrt(((said - measured) ** 2).mean()):.2f})"


def main() -> None:
    """JSON and a table."""
    found = list(rows(Path(sys.argv[1])))
    (RESULTS / "margins.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "margins.md").write_text(text(found))
    print(text(found))


if __name__ == "__main__":
    main()
