"""What branches cost where they are not fused: ``python -m tests.studies.ablations.speeds``.

Table 6 of the paper has the speed of RepVGG-B0 "without re-parameterisation". Here: evaluation of
its train form in every kind of block on the ``numpy`` backend, beside the fused one: one image of
224 x 224, one thread, time of the processor, the least of some rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import numpy as np

from repvgg_ref.blocks.catalogue import block_names
from repvgg_ref.models.network import Model, build, fuse
from tests.studies.ablations.page import RESULTS, write_page
from tests.studies.ablations.paths import paths
from weights_io import atomic_path

MODEL, STAGE, SIZE, ROUNDS = "RepVGG-B0", "stage3", 224, 8
FUSED = "fused_seconds"


def seconds(models: Mapping[str, Model], rounds: int = ROUNDS) -> dict[str, float]:
    """The processor's, for one image; in turns, since other work disturbs in spells."""
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    best: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, model in models.items():
            began = time.process_time()
            model.forward(x, threads=1)
            spent = time.process_time() - began
            if turn:  # the first pays for what later ones keep
                best[name] = min(best.get(name, spent), spent)
                print(f"{name:24}{spent:8.3f} s, least {best[name]:.3f} s", flush=True)
    return best


def main() -> None:
    """Measure and keep."""
    models = {block: build(MODEL, block=block) for block in block_names()}
    best = seconds(models | {FUSED: fuse(models["plain"])})
    rows = {
        block: {
            "train_seconds": round(best[block], 4),
            "paths": paths(model.arch),
            "paths_stage4": paths(model.arch, STAGE),
        }
        for block, model in models.items()
    }
    found = {"model": MODEL, "size": SIZE, FUSED: round(best[FUSED], 4), "blocks": rows}
    with atomic_path(RESULTS / "speeds.json") as path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
