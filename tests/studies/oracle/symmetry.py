"""Equal networks whose layers differ agree, in weight files and layer outputs; others do not.

python -m tests.studies.oracle.symmetry [--seeds N] > tests/studies/oracle/results/symmetry.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from tests.models.small import SMALL
from tests.oracle.symmetry.ports import changed, drawn_order

KINDS = ("plain", "grouped", "se-before-relu", "plus", "dilated")
WAYS = ("permuted", "scaled", "both", "powers of two")


def factors(way: str, channels: int, rng: np.random.Generator) -> Array:
    """Factors of one kind."""
    if way == "permuted":
        return np.ones(channels, np.float32)
    if way == "powers of two":
        return np.exp2(rng.integers(-3, 4, channels)).astype(np.float32)
    return np.exp(rng.uniform(-1.5, 1.5, channels)).astype(np.float32)


def ports(seeds: int, *, right: bool) -> Iterator[tuple[str, str, Model, Model, str]]:
    """Kind, way, reference, port, and the layer that was changed last."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for kind in KINDS:
            model = distinguishing_model(SMALL[kind], seed)
            names = [spec.name for spec in model.arch.blocks]
            for way in WAYS:
                port: Model = fuse(model)
                chosen = names if right and seed % 2 else [names[rng.integers(len(names))]]
                for layer in chosen:
                    channels = model.arch.block(layer).out_channels
                    same = way in ("scaled", "powers of two")
                    order = np.arange(channels) if same else drawn_order(model, layer, rng)
                    if not same and (order == np.arange(channels)).all():
                        order = np.roll(order, 0)
                    factor = factors(way, channels, rng)
                    port = changed(port, layer, order, factor, taken_back=right)
                yield kind, way, model, port, chosen[-1]


def judged(model: Model, port: Model, folder: str) -> tuple[Any, Any]:
    """The two reports: of the file, and of the layers."""
    path = Path(folder) / "port.npz"
    rr.save(port, path)
    x = distinguishing_inputs(model.arch)
    return rr.verify(model, path), rr.verify(model, port.forward(x, layers=True), inputs=x)


def main() -> None:
    """Count, and print what was found as JSON."""
    seeds = int(sys.argv[sys.argv.index("--seeds") + 1]) if "--seeds" in sys.argv else 5
    wrong = []
    counts: Counter[str] = Counter()
    named: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for right in (True, False):
            for kind, way, model, port, layer in ports(
                seeds if right else seeds // 2 + 1, right=right
            ):
                for what, report in zip(
                    ("file", "layers"), judged(model, port, folder), strict=True
                ):
                    counts[f"{'equal' if right else 'not equal'}, {what}"] += 1
                    if (report.verdict == "agree") != right:
                        wrong.append((right, what, kind, way, layer, report.reason[:150]))
                    elif right:
                        counts[f"reported, {what}"] += bool(report.equivalences)
                    else:
                        placed = "placed" if report.first_bad_layer == layer else "elsewhere"
                        bug = report.diagnosis[0].bug if report.diagnosis else "-"
                        named[f"{what}, {way}: {placed}, {bug}"] += 1
            print(right, counts, len(wrong), file=sys.stderr)
    print(json.dumps({"counts": counts, "called wrongly": wrong, "not equal": named}, indent=1))


if __name__ == "__main__":
    main()
