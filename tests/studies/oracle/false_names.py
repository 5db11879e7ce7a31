"""Bugs of no library, each alone in one block: does any get the name of a known one?

    python -m tests.studies.oracle.false_names --networks plain grouped se-before-relu plus

A right float32 port's layer is replaced by that of a spoiled program, with the port's own rounding
on top, and the oracle is asked about that layer. Writes ``results/false-names.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT
from repvgg_ref.oracle.diagnosis.small import ESTIMATED
from repvgg_ref.oracle.programs.program import batch_output, layer_output
from tests.studies.oracle.matrix_study import Port, findings_of
from tests.studies.oracle.more_strangers import CURVES, GATES, OTHERS
from tests.studies.oracle.networks import network_and_inputs
from tests.studies.oracle.strangers import BLOCK, Spoiled

RESULTS = Path(__file__).parent / "results" / "false-names.json"
NETWORKS = ("plain", "grouped", "se-before-relu", "plus")
_LEAST = 1e-3  # of a layer's outputs
# What the library knows by another name, or holds as a case of its own.
ALSO_CALLED = {
    "two channels exchanged": {"channels-permuted"},
    "first channels reversed": {"channels-permuted"},
    "channels shuffled in two groups": {"channels-permuted"},
    # Both are that, exactly.
    "kernel turned by 90 degrees": {"kernel-height-width-swapped", "kernel-flipped"},
    "bias is its mean": {"bias-dropped"},  # and a constant added
    # What lets negative numbers through has no ReLU, whatever else it does.
    **{name: {"relu-missing"} for name in ("min with 0", "rounded", "relu above -1")},
}


def strangers(port: Port, layer: str) -> dict[str, Spoiled]:
    """Those that a block can have."""
    gates = GATES if port.programs[layer].se is not None else {}
    return {**CURVES, **OTHERS, **BLOCK, **gates}


def asked_of(port: Port, layer: str, spoil: Spoiled) -> list[Any] | None:
    """What is found; None where the stranger changes too little here, or does not fit."""
    x, program = port.inputs[layer], port.programs[layer]
    right = layer_output(program, x)
    try:
        with np.errstate(all="ignore"):
            wrong = batch_output(spoil(program), x)
    except DO_NOT_FIT:
        return None
    size = float(np.abs(wrong - right).max()) if wrong.shape == right.shape else 0.0
    if not np.isfinite(wrong).all() or size <= _LEAST * float(np.abs(right).max()):
        return None
    noise = np.where(wrong == 0, 0.0, port.outputs[layer] - right)
    with np.errstate(all="ignore"):
        return findings_of(port, layer, (wrong + noise).astype(np.float32))


def study(network: str, seed: int, only: str, until: float) -> dict[str, Any]:
    """Strangers in an order drawn at random, each in the next layer, until the time is up."""
    port = Port(*network_and_inputs(network, seed, (32, 28)))
    layers = [name for name in port.names if name != "linear"]
    counts: Counter[str] = Counter()
    called = []
    kinds = list(strangers(port, layers[0]))
    for turn, kind in enumerate(np.random.default_rng(seed).permutation(kinds).tolist()):
        layer = layers[(turn + seed) % len(layers)]
        if only not in kind or time.monotonic() > until:
            continue
        found = asked_of(port, layer, strangers(port, layer)[kind])
        if found is None:
            continue
        names = (
            {each.bug for each in found} - {"unknown"} - ESTIMATED - ALSO_CALLED.get(kind, set())
        )
        counts["strangers"] += 1
        counts["caught"] += bool(found)
        counts["given a false name"] += bool(names)
        if names or not found:
            said = [f"{each.bug} {each.estimate} {each.says}" for each in found]
            print(network, layer, kind, said, flush=True)
            called.append({"layer": layer, "stranger": kind, "called": said})
    return {"network": network, "seed": seed, **counts, "false names": called}


def main() -> int:
    """Run the study; exit code 1 if any name was false."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="strangers whose name has this in it")
    parser.add_argument("--seconds", type=float, default=300, help="for each network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    done = []
    for network in asked.networks:
        found = study(network, asked.seed, asked.only, time.monotonic() + asked.seconds)
        print({key: value for key, value in found.items() if key != "false names"}, flush=True)
        done.append(found)
    asked.out.write_text(json.dumps(done, indent=1) + "\n")
    return int(any(each["given a false name"] for each in done))


if __name__ == "__main__":
    sys.exit(main())
