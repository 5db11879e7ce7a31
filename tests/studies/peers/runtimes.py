"""Is a right port ever accused? torch, ONNX Runtime, OpenVINO, ncnn and our own engine.

    python -m tests.studies.peers.runtimes --seconds 600

Networks and seeds as in `tests/studies/oracle/false_alarms.py`, whose tables and picture this
study writes too: ``results/runtimes.json``. Every port is given to `judge`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.verification import judge
from tests.peers import right_torch
from tests.peers.right_candidates import Port, RightCandidate, all_candidates
from tests.studies.oracle.false_alarms import FIRST_SEED, SIZES, estimated
from tests.studies.oracle.networks import Size, network_and_inputs
from tests.studies.oracle.tally import Tally, write

RESULTS = Path(__file__).parent / "results" / "runtimes.json"
NETWORKS = ("plain-16", "grouped-16", "se-16", "plus-16")
LARGE = ("B1g4/8", "D2se/8", "RepVGG-A0")
_LARGE = 5  # after so many small networks one large
_OURS = ("direct", "winograd2", "winograd4", "winograd5", "winograd6", "winograd7", "auto")


class Runtime(NamedTuple):
    """A right port: a name, how it is built, and what `judge` is told to hold it to."""

    name: str
    precision: str
    build: Callable[[Model, Path], Any]
    suits: Callable[[Model], bool]


def runtimes() -> Iterator[Runtime]:
    """Those of the tests that hand over all layers, and more of torch and of our own engine."""
    for each in all_candidates():
        if each.installed:
            yield Runtime(each.name, each.precision, each.build, each.suits)
    for threads in (1, 2):
        for mkldnn in (True, False):
            name = f"torch fused, {threads} threads{'' if mkldnn else ', no mkldnn'}"
            yield Runtime(name, "fp32", _torch(threads, mkldnn=mkldnn), _anything)
    for algorithm in _OURS:
        yield Runtime(f"our own, {algorithm}", "fp32", _our_own(algorithm), _anything)


def _anything(_model: Model) -> bool:
    return True


def _torch(threads: int, *, mkldnn: bool) -> Callable[[Model, Path], Port]:
    fused: RightCandidate = next(c for c in right_torch.CANDIDATES if c.name == "torch fused")

    def build(model: Model, folder: Path) -> Port:
        port = fused.build(model, folder)
        assert callable(port)

        def run(x: Array) -> Any:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with torch.backends.mkldnn.flags(enabled=mkldnn):
                    return port(x)
            finally:
                torch.set_num_threads(before)

        return run

    return build


def _our_own(algorithm: str) -> Callable[[Model, Path], Port]:
    def build(model: Model, _folder: Path) -> Port:
        fused = fuse(model)
        return lambda x: fused.forward(x, layers=True, algorithm=algorithm)

    return build


def _numbers(y: Any) -> Array:
    """A layer's output as float64, whatever library it comes from."""
    return np.asarray(y.double() if isinstance(y, torch.Tensor) else y, np.float64)


def cases() -> Iterator[tuple[str, int, Size]]:
    """Networks, seeds and sizes, without end."""
    sizes, large = cycle(SIZES[1:]), cycle(LARGE)
    for turn, (name, seed) in enumerate(zip(cycle(NETWORKS), count(FIRST_SEED), strict=False)):
        yield name, seed, next(sizes)
        if turn % _LARGE == _LARGE - 1:
            yield next(large), seed, (64, 72)


def study(seconds: float) -> dict[str, Tally]:
    """All runtimes on one network after the other, until the time is up."""
    until = time.monotonic() + seconds
    tallies: dict[str, Tally] = {}
    for network, seed, size in cases():
        model, x = network_and_inputs(network, seed, size)
        programs = Programs(model)
        for runtime in runtimes():
            if time.monotonic() > until:
                return tallies
            if not runtime.suits(model):
                continue
            with tempfile.TemporaryDirectory() as folder:
                port = runtime.build(model, Path(folder))
                if not callable(port):  # a file: the same arithmetic, tapped by our own reader
                    continue
                outputs = {name: _numbers(y) for name, y in port(x).items()}
            what = {"network": network, "seed": seed, "size": list(size)}
            tally = tallies.setdefault(runtime.name, Tally())
            found = estimated(programs, x, outputs, runtime.precision)
            tally.add(found, **what)
            tally.add_verdict(
                judge(model, Outputs(outputs), x, precision=runtime.precision), **what
            )
            if found.alarms:
                print(runtime.name, tally.alarms[-1], flush=True)
            if tally.not_agree and tally.not_agree[-1]["seed"] == seed:
                print(runtime.name, tally.not_agree[-1], flush=True)
    return tallies


def main() -> int:
    """Run the study; exit code 1 if anybody was accused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    tallies = study(asked.seconds)
    write(asked.out, tallies, {"first_seed": FIRST_SEED, "seconds": asked.seconds})
    accused = sum(v["verdict"] == "disagree" for t in tallies.values() for v in t.not_agree)
    print(f"{sum(t.runs for t in tallies.values())} runs, {accused} right ports accused")
    return 1 if accused else 0


if __name__ == "__main__":
    sys.exit(main())
