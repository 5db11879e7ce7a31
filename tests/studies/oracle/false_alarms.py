"""Is a right port ever accused? Every arithmetic emulated, small networks and large, fresh seeds.

    python -m tests.studies.oracle.false_alarms --seconds 900 --processes 2

Seed after seed until the time is up; ports of runtimes: `tests/studies/peers/runtimes.py`. Writes
``results/false-alarms.json`` and a picture of the p-values. ``--networks RepVGG-A0 --size 64 64``
runs every arithmetic on those networks alone; ``--resume`` goes on where an earlier run of the same
arguments stopped, killed or not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import count, cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.operands import Seen
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.estimates.port import PortEstimates, estimate_port
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.verification import judge
from tests.studies.oracle.arithmetics import ARITHMETICS, run
from tests.studies.oracle.networks import Size, network_and_inputs
from tests.studies.oracle.tally import Tally, read, write

RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 300  # lower ones were used while thresholds were chosen
PRECISION = {
    "fp16": "fp16",
    "fp16-acc16": "fp16",
    "bf16": "bf16",
    "tf32": "tf32",
    "tf32-cut": "tf32",
}
SMALL = (
    "plain-16", "grouped-16", "se-16", "plus-16", "plain", "grouped", "se-before-relu", "plus",
    "dilated",
)  # fmt: skip
SIZES: tuple[Size, ...] = ((24, 24), (33, 40), (48, 40), (64, 72), (96, 80))
LARGE: tuple[tuple[str, Size], ...] = (
    ("B1g4/8", (64, 72)),
    ("D2se/8", (64, 72)),
    ("RepVGG-A0", (64, 72)),
    ("plain-16", (224, 224)),
    ("RepVGG-A0", (96, 80)),
)
_JUDGED = 4  # every so many runs
_LARGE = 6  # after so many small networks one large, with a share of the arithmetics
_SHARE = 6


def seen_of(programs: Programs, x: Array, outputs: Mapping[str, Array]) -> dict[str, Seen]:
    """Every layer with the port's own input of it."""
    found = {}
    x = np.asarray(x, float)
    for name, program in programs.items():
        y_hat = np.asarray(outputs[name], float)
        found[name] = Seen(program, x, layer_output(program, x), y_hat)
        x = y_hat
    return found


def estimated(
    programs: Programs, x: Array, outputs: Mapping[str, Array], precision: str
) -> PortEstimates:
    """A port's estimates, as `judge` makes them."""
    return estimate_port(seen_of(programs, x, outputs), PRECISIONS[precision])


class Run(NamedTuple):
    """One port: a network's, in one arithmetic."""

    network: str
    seed: int
    size: Size
    arithmetic: str
    judged: bool


def cases(seeds: Iterator[int]) -> Iterator[tuple[str, int, Size]]:
    """Networks, seeds and sizes, small ones mostly, without end."""
    sizes, large = cycle(SIZES), cycle(LARGE)
    for turn, (name, seed) in enumerate(zip(cycle(SMALL), seeds, strict=False)):
        yield name, seed, next(sizes)
        if turn % _LARGE == _LARGE - 1:
            big, size = next(large)
            yield big, seed, size


def runs_of(asked: argparse.Namespace) -> Iterator[Run]:
    """All arithmetics on one network after the other, without end."""
    seeds = count(asked.first_seed)
    names = tuple(asked.arithmetics)
    turn = 0
    size = asked.size[0], asked.size[1]
    only = ((*each, size) for each in zip(cycle(asked.networks or SMALL), seeds, strict=False))
    for network, seed, size in only if asked.networks else cases(seeds):
        every = asked.networks or (network in SMALL and max(size) <= 96)
        for name in names if every else names[seed % _SHARE :: _SHARE]:
            turn += 1
            yield Run(network, seed, size, name, turn % _JUDGED == 0)


_network = lru_cache(maxsize=1)(network_and_inputs)  # the runs of one follow each other


def tallied(asked: Run) -> tuple[str, Tally]:
    """One run, counted."""
    model, x = _network(asked.network, asked.seed, asked.size)
    programs = Programs(model)
    outputs = run(programs, x, asked.arithmetic)
    precision = PRECISION.get(asked.arithmetic, "fp32")
    what = {"network": asked.network, "seed": asked.seed, "size": list(asked.size)}
    found = estimated(programs, x, outputs, precision)
    tally = Tally()
    tally.add(found, **what)
    if asked.judged or found.alarms:
        report = judge(model, Outputs(outputs), x, precision=precision)
        tally.add_verdict(report, **what)
    for listed in (tally.alarms, tally.not_agree):
        if listed:
            print(asked.arithmetic, listed[-1], flush=True)
    return asked.arithmetic, tally


def resumed(asked: argparse.Namespace) -> dict[str, Tally]:
    """What an earlier run left, or nothing."""
    if not (asked.resume and asked.out.exists()):
        return {}
    same = json.loads(asked.out.read_text())["first_seed"] == asked.first_seed
    if not same:
        raise SystemExit(f"{asked.out} is of other seeds: give --first-seed as it was")
    return read(asked.out)


def main() -> int:
    """Run the study; exit code 1 if anybody was accused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--arithmetics", nargs="+", default=ARITHMETICS, choices=ARITHMETICS)
    parser.add_argument("--networks", nargs="+", default=[], help="these alone")
    parser.add_argument("--size", nargs=2, type=int, default=(64, 64), help="of --networks")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--out", type=Path, default=RESULTS / "false-alarms.json")
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    tallies = resumed(asked)
    runs = islice(runs_of(asked), sum(tally.runs for tally in tallies.values()), None)
    asked.out.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(asked.processes) as pool:
        while time.monotonic() < until:
            for name, tally in pool.map(tallied, list(islice(runs, asked.processes))):
                tallies.setdefault(name, Tally()).merge(tally)
            write(asked.out, tallies, {"first_seed": asked.first_seed})
    accused = sum(v["verdict"] == "disagree" for t in tallies.values() for v in t.not_agree)
    print(f"{sum(t.runs for t in tallies.values())} runs, {accused} right ports accused")
    return 1 if accused else 0


if __name__ == "__main__":
    sys.exit(main())
