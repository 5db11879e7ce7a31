"""Is what a report claims to detect detected? Faults of 1.5 times the claimed size, one at a time.

    python -m tests.studies.oracle.claims --seconds 900 --processes 2

A right port of a network is estimated, and every layer of it says what it would see
(`LayerReport.detects`). Then each layer in turn is made wrong by that much more, kind by kind, the
later layers going on from its outputs, and the port is estimated again: the layer has to have an
alarm. Of faults in one channel three in four have to be seen, as is claimed. Seed after seed until
the time is up; writes ``results/claims.json``. ``--rows FILE`` keeps every fault in a file, one a
line, and goes on from what it holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.arithmetic.operands import Seen
from repvgg_ref.oracle.arithmetic.port import direct_nuisance
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.estimates.estimate import alarms
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.estimates.port import PortEstimates, estimate_port
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs
from tests.studies.oracle.arithmetics import layer, run, single
from tests.studies.oracle.false_alarms import SIZES, estimated, seen_of
from tests.studies.oracle.networks import network_and_inputs

RESULTS = Path(__file__).parent / "results" / "claims.json"
NETWORKS = (
    "se-narrow",
    "se-16",
    "plus-16",
    "plain-16",
    "grouped-16",
    "se-before-relu",
    "plus",
    "many-branches",
)
PORTS = ("blocked", "chain", "F4")
FIRST_SEED = 12000
_MORE = 1.5
_FEW = 8  # active outputs of a channel that is judged alone
_IMAGES = 3
_MOST = 0.75  # of the channels: what a claim of one is for
_WHOLE = 12  # every so many faults the whole port is estimated anew, else the faulty layer alone

# kind -> the claim that it is held to
KINDS = {
    "outputs": "scale",
    "a channel": "channel",
    "a channel of median energy": "channel",
    "bias": "bias",
    "bias, the other way": "bias",
    "a channel's bias": "channel bias",
    "the bias of a channel of median energy": "channel bias",
    "last image": "part",
    "last column": "part",
    "first row": "part",
    "weights at random": "taps",
    "a weight": "tap",
    "a weight of a channel of median energy": "tap",
}


def faulty(kind: str, here: LayerEstimates, program: BlockProgram, x: Array, y: Array,
           size: float, port: str) -> Array:  # fmt: skip
    """The output `y` of a right layer, or the layer with other weights, wrong by `size`."""
    sample = here.sample
    channel = (median_channel if kind.endswith("median energy") else typical_channel)(here)
    if kind in _PLACES:
        y = y.copy()
        y[_PLACES[kind](channel)] *= 1 + size
        return y
    kernel = program.fused_kernel()
    weight, bias = kernel.weight.copy(), kernel.bias.copy()
    if kind.startswith("bias"):
        bias *= 1 + (size if kind == "bias" else -size)
    elif "bias" in kind:
        bias[channel] *= 1 + size
    elif kind == "weights at random":
        noise = np.random.default_rng(0).normal(size=weight.shape)
        weight += size * sample.magnitude.reshape(weight.shape) * noise
    else:
        weight[channel].flat[np.abs(weight[channel]).argmax()] *= 1 + size
    changed = replace(program, branches={}, fused=FusedConv(single(weight), single(bias)))
    return layer(changed, x, port)


_PLACES: dict[str, Any] = {
    "outputs": lambda channel: slice(None),
    "a channel": lambda channel: (slice(None), channel),
    "a channel of median energy": lambda channel: (slice(None), channel),
    "last image": lambda channel: -1,
    "last column": lambda channel: (..., -1),
    "first row": lambda channel: (..., 0, slice(None)),
}


def typical_channel(here: LayerEstimates) -> int:
    """Of those that can be judged alone, the one whose scale is told in the middle."""
    gated = here.gated
    errors = gated.channels()[1] if gated else here.regress(here.sample.y).single()[1]
    order = [int(o) for o in np.argsort(errors, kind="stable") if here.count[o] >= _FEW]
    return order[len(order) // 2] if order else int(here.count.argmax())


def median_channel(here: LayerEstimates) -> int:
    """The one of median energy, behind ReLU, among those that can be judged alone."""
    energy = (np.maximum(here.sample.y, 0) ** 2).mean(axis=1)
    order = [int(o) for o in np.argsort(energy, kind="stable") if here.count[o] >= _FEW]
    return order[len(order) // 2] if order else int(here.count.argmax())


def alone(right: PortEstimates, here: Seen, y_hat: Array) -> bool:
    """Whether a faulty layer has an alarm among the right ones of its port."""
    name = here.program.name
    sample = right.samples[name]

    def sampled(y: Array) -> Array:
        return np.asarray(y[sample.images, :, sample.rows, sample.across].T / sample.gate)

    sample = sample.beside(sampled(here.y), sampled(y_hat), right.arithmetic.unit)
    nuisance = right.arithmetic.nuisances[name]
    if nuisance.algorithm == "direct":
        nuisance = direct_nuisance(sample, right.arithmetic.directed, right.arithmetic.unit)
    found = LayerEstimates(sample, nuisance).all(claims=False)
    others = [e for n, listed in right.estimates.items() if n != name for e in listed]
    return any(e in found for e in alarms([*others, *found]))


class Port(NamedTuple):
    """A right port that faults are planted in."""

    network: str
    seed: int
    size: tuple[int, int]
    arithmetic: str


def tried(asked: Port) -> list[dict[str, Any]]:
    """All kinds in all layers of one port."""
    network, seed, size, port = asked
    model, x = network_and_inputs(network, seed, size, _IMAGES)
    programs = Programs(model)
    seen_right = seen_of(programs, x, run(programs, x, port))
    right = estimate_port(seen_right, PRECISIONS["fp32"])
    found: list[dict[str, Any]] = []
    for name, program in programs.items():
        if name not in right.samples or not isinstance(program, BlockProgram):
            continue
        claims = right.detects(name)
        estimator = LayerEstimates(right.samples[name], right.arithmetic.nuisances[name])
        for kind, claim in KINDS.items():
            claimed = claims.get(claim)
            if claimed is None:
                continue
            wrong = _MORE * claimed

            def fault(p: Any, x: Array, y: Array, kind: str = kind, wrong: float = wrong,
                      here: LayerEstimates = estimator) -> Array:  # fmt: skip
                return faulty(kind, here, p, x, y, wrong, port)

            if len(found) % _WHOLE:
                here = seen_right[name]
                seen = alone(right, here, single(fault(program, here.x, here.y_hat)))
            else:
                outputs = run(programs, x, port, {name: fault})
                seen = name in estimated(programs, x, outputs, "fp32").alarms
            found.append({
                "network": network, "seed": seed, "size": list(size), "port": port,
                "layer": name, "kind": kind, "claimed": float(f"{claimed:.3g}"),
                "seen": seen, "whole": not (len(found) % _WHOLE),
            })  # fmt: skip
            if not seen:
                print(found[-1], flush=True)
    return found


def ports(asked: argparse.Namespace) -> Iterator[Port]:
    """Port after port, without end."""
    turns = zip(cycle(asked.networks), cycle(SIZES[1:4]), strict=False)
    for turn, (network, size) in enumerate(turns):
        yield Port(network, asked.first_seed + turn, size, PORTS[turn % len(PORTS)])


def rows_of(path: Path | None) -> list[dict[str, Any]]:
    """What an earlier run kept, or nothing."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each network and kind: how many were tried, and which were missed."""
    table: dict[str, dict[str, str]] = {}
    for network in dict.fromkeys(each["network"] for each in found):
        mine = [each for each in found if each["network"] == network]
        count_of = Counter(each["kind"] for each in mine)
        seen = Counter(each["kind"] for each in mine if each["seen"])
        table[network] = {kind: f"{seen[kind]} of {count_of[kind]}" for kind in count_of}
    return {
        "faults": len(found),
        "missed": [each for each in found if not each["seen"]],
        "seen": table,
        "claimed": _median_claims(found),
    }


def _median_claims(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    sizes: dict[str, dict[str, list[float]]] = {}
    for each in found:
        sizes.setdefault(each["network"], {}).setdefault(each["kind"], []).append(each["claimed"])
    return {
        network: {kind: float(f"{np.median(s):.2g}") for kind, s in kinds.items()}
        for network, kinds in sizes.items()
    }


def main() -> int:
    """Run the study; exit code 1 if more was missed than is claimed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--rows", type=Path, help="every fault, one a line: go on from here")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    found = rows_of(asked.rows)
    left = islice(ports(asked), len({row["seed"] for row in found}), None)
    with ProcessPoolExecutor(asked.processes) as pool:
        while time.monotonic() < until:
            for rows in pool.map(tried, list(islice(left, asked.processes))):
                found += rows
                if asked.rows:
                    with asked.rows.open("a") as kept:
                        kept.writelines(json.dumps(row) + "\n" for row in rows)
    whole = {"first_seed": asked.first_seed, "times the claim": _MORE, **summary(found)}
    asked.out.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"{len(found)} faults, {len(whole['missed'])} missed")
    return 1 if overclaimed(found) else 0


def overclaimed(found: list[dict[str, Any]]) -> list[str]:
    """The kinds of which fewer were seen than is claimed."""
    kinds = dict.fromkeys(each["kind"] for each in found)
    seen = {kind: [each["seen"] for each in found if each["kind"] == kind] for kind in kinds}
    return [k for k, each in seen.items() if np.mean(each) < (_MOST if "a " in k else 1.0)]


if __name__ == "__main__":
    sys.exit(main())
