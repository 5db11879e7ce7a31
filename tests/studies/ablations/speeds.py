"""What branches cost where they are not fused: ``python -m tests.studies.ablations.speeds``.

Table 6 of the paper has the speed of RepVGG-B0 "without re-parameterisation". Here: evaluation of
its train form in every kind of block on the ``numpy`` backend, beside the fused one: one image of
224 x 224, one thread, time of the processor, the least of some rounds.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from repvgg_ref.blocks.catalogue import RESIDUAL_REORG, block_names
from repvgg_ref.models.network import Model, build, fold_norms, fuse
from repvgg_ref.models.registry import network
from tests.studies.ablations.page import RESULTS, write_page
from tests.studies.ablations.paths import paths
from weights_io import atomic_path

MODEL, STAGE, SIZE, ROUNDS = "RepVGG-B0", "stage3", 224, 5


def forms(block: str) -> dict[str, Model]:
    """The network of `block` as trained and, where something can be folded, as deployed."""
    model = build(MODEL, block=block)
    if model.arch.is_fusible:
        return {"train": model, "deploy": fuse(model)}
    return {"train": model} | ({"deploy": fold_norms(model)} if block == RESIDUAL_REORG else {})


def seconds(model: Model, rounds: int = ROUNDS) -> float:
    """The processor's, for one image."""
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    model.forward(x, threads=1)  # pays for what later calls keep
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        model.forward(x, threads=1)
        spent.append(time.process_time() - began)
    return min(spent)


def measured() -> dict[str, dict[str, float]]:
    """Seconds of each block's forms."""
    best: dict[str, dict[str, float]] = {}
    for block in block_names():
        best[block] = {form: seconds(model) for form, model in forms(block).items()}
        print(f"{block:22}{best[block]}", flush=True)
    return best


def rows(best: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Times beside those of the plain network, and numbers of paths."""
    plain = best["plain"]["train"]
    return {
        block: {
            "train_seconds": round(each["train"], 4),
            "times_plain": round(each["train"] / plain, 3),
            "deploy_seconds": round(each["deploy"], 4) if "deploy" in each else None,
            "paths": paths(network(MODEL, block=block)),
            "paths_stage4": paths(network(MODEL, block=block), STAGE),
        }
        for block, each in best.items()
    }


def main() -> None:
    """Measure and keep."""
    found = {"model": MODEL, "size": SIZE, "threads": 1, "blocks": rows(measured())}
    with atomic_path(RESULTS / "speeds.json") as path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
