"""Logits only: what is caught, placed and named, what right ports are told, and how long it takes.

    python -m tests.studies.oracle.logits_study [--model NAME ...] [--bugs N] [--out FILE.json]

Ports compute in float32. In N of them, drawn at random, a layer (or every layer) has a bug of the
library; in others one that is not (`strangers`), in a layer drawn at random. Each is judged twice:
by one batch of logits, and with leave to call it again. Right ports are those of tests/peers.

"Placed" is the right layer first or among those whose bugs give the same logits; "named" is the
right name, or another listed as the same on all images seen. A port with a library bug that agrees
counts as missed unless the report lists the bug as one that could hide.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.blas import single_threaded_blas
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import LAYER_BUGS, Mutant
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import output_of, site_of
from repvgg_ref.oracle.candidates import CandidateFailure, Outputs
from repvgg_ref.oracle.diagnosis import blackbox
from repvgg_ref.oracle.diagnosis.alternatives import Alternative, Chain, alternatives
from repvgg_ref.oracle.diagnosis.differences import nhwc
from repvgg_ref.oracle.power import Place
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import EVERYWHERE, Report
from tests.models.small import SMALL
from tests.studies.oracle.strangers import BLOCK, HEAD

FP32 = PRECISIONS["fp32"]
Program = Any
Spoil = Callable[[str, Program, Array], Program | None]


@dataclass
class Network:
    """A reference and float32 ports of it."""

    model: Model
    x: Array
    chain: Chain = field(init=False)

    def __post_init__(self) -> None:
        self.chain = Chain(Programs(self.model), self.x)

    def logits(self, x: Array, spoil: Spoil) -> Array:
        """A port's answer: float32 throughout, but for the layers that `spoil` gives a program."""
        y = np.asarray(x, np.float32)
        for name in self.chain.names:
            wrong = spoil(name, self.chain.programs[name], y.astype(np.float64))
            if wrong is not None:
                out = output_of(wrong, y.astype(np.float64))
                if out is None:
                    raise CandidateFailure("the port failed")
                y = out.astype(np.float32)
            elif name == self.chain.names[-1]:
                head = self.chain.differences
                y = y.mean(axis=(2, 3)) @ head.weight.T + head.bias
            else:
                block = self.chain.differences.blocks[name]
                y = block.value(nhwc(y)).transpose(0, 3, 1, 2)
        return y

    def judged(self, spoil: Spoil, *, again: bool) -> Report:
        """The oracle's report."""
        call = (lambda x: self.logits(x, spoil)) if again else None
        outputs = Outputs({"linear": self.logits(self.x, spoil)})
        programs = self.chain.programs
        return blackbox.judge_logits(
            programs, outputs, self.x, FP32, "port", again=call, library=remembered
        )


@dataclass(frozen=True)
class Case:
    """One port and what was said of it."""

    bug: str
    setting: str
    layer: str | None
    again: bool
    verdict: str
    placed: bool
    named: bool
    said: str
    confidence: float
    hidden: bool


def library_spoil(place: Place) -> Spoil:
    """The program of a library bug wherever it belongs."""

    def spoil(name: str, program: Program, x: Array) -> Program | None:
        if place.layer not in (None, name) or (place.layer is None and name == "linear"):
            return None
        site = site_of(_PROGRAMS[0], name, x)
        bug = next(b for b in _all_bugs() if b.name == place.bug and _fits(b, program))
        made: Iterator[Mutant[Any]] = planted([bug], site, place.layer)
        return next((m.variant.program for m in made if Place.of(m) == place), None)

    return spoil


_PROGRAMS: list[Programs] = []


def use(network: Network) -> None:
    """The network that `library_spoil` plants bugs in."""
    _PROGRAMS[:] = [network.chain.programs]


def _all_bugs() -> list[Any]:
    from repvgg_ref.oracle.bugs import HEAD_BUGS

    return [*LAYER_BUGS, *HEAD_BUGS]


def _fits(bug: Any, program: Program) -> bool:
    from repvgg_ref.oracle.bugs import bugs_for

    return bug in bugs_for(program)


def places(network: Network) -> list[Place]:
    """Everything of the library that changes the logits by more than float64's rounding."""
    found = remembered(network.chain, "fp32")
    return [each.place for each in found if np.abs(each.change).max() > 0]


def study_library(network: Network, count: int) -> list[Case]:
    """Library bugs drawn at random: a fifth of them in every layer."""
    rng = np.random.default_rng(0)
    everything = places(network)
    all_over = [place for place in everything if place.layer is None]
    single = [place for place in everything if place.layer is not None]
    chosen = [all_over[i] for i in rng.permutation(len(all_over))[: count // 5]]
    chosen += [single[i] for i in rng.permutation(len(single))[: count - len(chosen)]]
    cases = []
    for place in track(chosen, f"{network.model.name}: library"):
        for again in (False, True):
            try:
                report = network.judged(library_spoil(place), again=again)
            except CandidateFailure:
                continue
            cases.append(case_of(place, again, report))
    return cases


def case_of(place: Place, again: bool, report: Report) -> Case:
    """What the report says of a port whose bug is known."""
    top = report.diagnosis[0] if report.diagnosis else None
    names = () if top is None else (top.bug, *top.equivalents)
    placed = top is not None and top.layer == (place.layer or EVERYWHERE) and top.bug != "unknown"
    hidden = report.power is not None and any(
        bug.bug == place.bug and (place.layer or "every layer") in bug.hidden
        for bug in report.power.bugs
    )
    said = top.bug if top else report.verdict
    sure = top.confidence if top else 0.0
    named = place.bug in names
    return Case(*place, again, report.verdict, placed, named, said, sure, hidden)


def study_strangers(network: Network) -> list[Case]:
    """Each bug that is not in the library, in one layer drawn at random."""
    rng = np.random.default_rng(1)
    cases = []
    for kind, spoiled in track([*BLOCK.items(), *HEAD.items()], f"{network.model.name}: others"):
        layer = "linear" if kind in HEAD else str(rng.choice(network.chain.blocks))

        def spoil(
            name: str, program: Program, _x: Array, layer: str = layer, change: Any = spoiled
        ) -> Program | None:
            return change(program) if name == layer else None

        for again in (False, True):
            report = network.judged(spoil, again=again)
            cases.append(case_of(Place(kind, "", layer), again, report))
    return cases


def study_right(model: Model, x: Array, console: Console) -> list[dict[str, Any]]:
    """Every right port of tests/peers that is installed, both ways."""
    from repvgg_ref.oracle.candidates.resolve import resolve
    from tests.peers.right_candidates import all_candidates

    told, programs = [], Programs(model)
    for port in all_candidates():
        if not port.installed or not port.suits(model):
            continue
        with tempfile.TemporaryDirectory() as folder:
            taken = resolve(port.build(model, Path(folder)), model.arch)

            def call(images: Array, taken: Any = taken) -> Array:
                return np.asarray(taken.run(images).layers["linear"])

            for again in (None, call):
                outputs = Outputs({"linear": call(x)})
                report = blackbox.judge_logits(
                    programs,
                    outputs,
                    x,
                    PRECISIONS[port.precision],
                    port.name,
                    again=again,
                    library=remembered,
                )
                power = report.power
                told.append(
                    {
                        "port": port.name,
                        "again": again is not None,
                        "verdict": report.verdict,
                        "kappa": power.kappa if power else report.layers[0].ratio * 12,
                        "share": power.share if power else None,
                    }
                )
                if report.verdict != "agree":
                    console.print(f"{model.name} {port.name}: {report.verdict}: {report.reason}")
    return told


_KEPT: dict[Any, list[Alternative]] = {}


def remembered(chain: Chain, precision: str, **_progress: Any) -> list[Alternative]:
    """`alternatives`, which do not depend on the port: computed once for a batch."""
    key = (id(chain.programs.model), chain.inputs[chain.names[0]].tobytes(), precision)
    if key not in _KEPT:
        _KEPT[key] = list(alternatives(chain, precision))
    return _KEPT[key]


def summary(cases: list[Case], *, stranger: bool) -> Mapping[str, Any]:
    """Counts, once with one batch and once with leave to call again."""
    found: dict[str, Any] = {}
    for again in (False, True):
        mine = [case for case in cases if case.again == again]
        missed = [c for c in mine if c.verdict == "agree" and not c.hidden]
        found["called again" if again else "one batch"] = {
            "ports": len(mine),
            "disagree": sum(c.verdict == "disagree" for c in mine),
            "cannot-judge": sum(c.verdict == "cannot-judge" for c in mine),
            "agree": sum(c.verdict == "agree" for c in mine),
            **(
                {"named with confidence above 0.9": sum(c.confidence > 0.9 for c in mine)}
                if stranger
                else {
                    "missed": len(missed),
                    "placed": sum(c.placed for c in mine),
                    "named": sum(c.named for c in mine),
                }
            ),
        }
    return found


def main() -> None:
    """Run the study and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*", default=["plain", "grouped", "se-before-relu"])
    parser.add_argument("--bugs", type=int, default=100)
    parser.add_argument("--parts", nargs="*", default=["time", "library", "strangers", "right"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    console, results = Console(width=120), {}
    for name in arguments.model:
        model = distinguishing_model(SMALL.get(name) or rr.architecture(name))
        network = Network(model, distinguishing_inputs(model.arch))
        use(network)
        with single_threaded_blas():
            results[name] = _parts(network, arguments, console)
        console.print(name, results[name]["summary"])
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def _parts(network: Network, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": {}}
    if "time" in arguments.parts:
        start, used = time.perf_counter(), time.process_time()
        report = network.judged(lambda *_: None, again=True)
        found["summary"]["right port"] = {
            "verdict": report.verdict,
            "seconds": time.perf_counter() - start,
            "processor seconds": time.process_time() - used,
        }
        found["power"] = report.power.to_json() if report.power else None
    if "library" in arguments.parts:
        cases = study_library(network, arguments.bugs)
        found["summary"]["library"] = summary(cases, stranger=False)
        found["library, not named"] = [asdict(c) for c in cases if not (c.named and c.placed)]
    if "strangers" in arguments.parts:
        cases = study_strangers(network)
        found["summary"]["strangers"] = summary(cases, stranger=True)
        found["strangers"] = [asdict(case) for case in cases]
    if "right" in arguments.parts:
        found["right"] = study_right(network.model, network.x, console)
        verdicts = [each["verdict"] for each in found["right"]]
        found["summary"]["right"] = {v: verdicts.count(v) for v in sorted(set(verdicts))}
    return found


if __name__ == "__main__":
    main()
