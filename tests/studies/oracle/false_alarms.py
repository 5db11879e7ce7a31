"""Is a right port ever accused? Every arithmetic emulated, small networks and large, fresh seeds.

    python -m tests.studies.oracle.false_alarms --seconds 900 --processes 2

Seed after seed until the time is up; ports of runtimes: `tests/studies/peers/runtimes.py`. Writes
``results/false-alarms.json`` and a picture of the p-values. ``--networks RepVGG-A0 --size 64 64``
runs every arithmetic on those networks alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

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
from tests.studies.oracle.tally import Tally, write

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


def cases(seeds: Iterator[int]) -> Iterator[tuple[str, int, Size]]:
    """Networks, seeds and sizes, small ones mostly, without end."""
    sizes, large = cycle(SIZES), cycle(LARGE)
    for turn, (name, seed) in enumerate(zip(cycle(SMALL), seeds, strict=False)):
        yield name, seed, next(sizes)
        if turn % _LARGE == _LARGE - 1:
            big, size = next(large)
            yield big, seed, size


def study(process: int, asked: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Tally]:
    """All arithmetics on one network after the other, until the time is up."""
    until = time.monotonic() + asked.seconds
    tallies = {name: Tally() for name in names}
    turn = process
    seeds = count(asked.first_seed + process, asked.processes)
    size: Any = tuple(asked.size)
    only = ((*each, size) for each in zip(cycle(asked.networks or SMALL), seeds, strict=False))
    for network, seed, size in only if asked.networks else cases(seeds):
        model, x = network_and_inputs(network, seed, size)
        programs = Programs(model)
        every = asked.networks or (network in SMALL and max(size) <= 96)
        chosen = names if every else names[seed % _SHARE :: _SHARE]
        for name in chosen:
            if time.monotonic() > until:
                return tallies
            outputs = run(programs, x, name)
            precision = PRECISION.get(name, "fp32")
            what = {"network": network, "seed": seed, "size": list(size)}
            found = estimated(programs, x, outputs, precision)
            tallies[name].add(found, **what)
            if found.alarms:
                print(name, tallies[name].alarms[-1], flush=True)
            turn += 1
            if turn % _JUDGED == 0 or found.alarms:
                report = judge(model, Outputs(outputs), x, precision=precision)
                tallies[name].add_verdict(report, **what)
                if report.verdict != "agree":
                    print(name, tallies[name].not_agree[-1], flush=True)
    return tallies


def main() -> int:
    """Run the study; exit code 1 if anybody was accused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--arithmetics", nargs="+", default=ARITHMETICS, choices=ARITHMETICS)
    parser.add_argument("--networks", nargs="+", default=[], help="these alone")
    parser.add_argument("--size", nargs=2, type=int, default=(64, 64), help="of --networks")
    parser.add_argument("--out", type=Path, default=RESULTS / "false-alarms.json")
    asked = parser.parse_args()
    names = tuple(asked.arithmetics)
    with ProcessPoolExecutor(asked.processes) as pool:
        jobs = [pool.submit(study, process, asked, names) for process in range(asked.processes)]
        parts = [job.result() for job in jobs]
    tallies = parts[0]
    for part in parts[1:]:
        for name, tally in part.items():
            tallies[name].merge(tally)
    tallies = {name: tally for name, tally in tallies.items() if tally.runs}
    asked.out.parent.mkdir(exist_ok=True)
    write(asked.out, tallies, {"first_seed": asked.first_seed, "seconds": asked.seconds})
    accused = sum(v["verdict"] == "disagree" for t in tallies.values() for v in t.not_agree)
    print(f"{sum(t.runs for t in tallies.values())} runs, {accused} right ports accused")
    return 1 if accused else 0


if __name__ == "__main__":
    sys.exit(main())
