"""The diagnosis matrix: every known bug in every layer; is it seen, and is it named right?

    python -m tests.studies.oracle.matrix_study [--model NAME ...] [--logits N] [--out FILE.json]

A right port is run in float32. In one layer at a time its output is replaced by that of a wrong
program, with the right port's own float32 rounding on top, and the oracle is asked. Bugs that
change nothing in a layer (by more than 1e-13) do not count. Naming one of several bugs that predict
the same output there is right, since they are one bug on that data.

With ``--logits N`` the oracle sees the logits only, of N plants drawn at random; the rest of the
network is right.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.blas import single_threaded_blas
from repvgg_ref.oracle.bounds.comparison import Comparison, compare
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs.harness import mutants
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.alternatives import Chain
from repvgg_ref.oracle.diagnosis.explain import Case, explain
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import batch_output, layer_output
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.verification import judge
from tests.models.small import SMALL

FP32 = PRECISIONS["fp32"]


@dataclass(frozen=True)
class Plant:
    """One bug in one layer, and what the oracle said of it."""

    bug: str
    layer: str
    detail: str
    detected: bool
    named: bool
    top: str
    explains: float


class Port:
    """A right port in float32: every layer's input and output."""

    def __init__(self, model: Model, x: Array) -> None:
        self.model, self.x, self.programs = model, x, Programs(model)
        self.outputs = model.forward(x, layers=True)
        self.names = model.arch.layer_names
        given = (x, *(self.outputs[name] for name in self.names[:-1]))
        self.inputs = {n: y.astype(np.float64) for n, y in zip(self.names, given, strict=True)}

    def plants(self, layer: str) -> Iterator[tuple[str, str, Array]]:
        """``(bug, detail, wrong output)`` for every variant that changes something here."""
        x = self.inputs[layer]
        right = layer_output(self.programs[layer], x)
        noise = self.outputs[layer] - right
        for _, mutant in mutants(self.programs, self.inputs, [layer]):
            program, variant = mutant.variant.program, mutant.variant
            if min(program.output_size(*x.shape[2:]), default=1) < 1:
                continue
            wrong = batch_output(program, x)
            if wrong.shape == right.shape:
                if np.abs(wrong - right).max() <= 1e-13 * np.abs(right).max():
                    continue
                silent = (wrong == 0) & (right.ndim == 4)  # where ReLU is off nothing is rounded
                wrong = np.where(silent, 0, wrong + noise)
            detail = variant.detail + (f" {variant.parameter:g}" if variant.parameter else "")
            yield mutant.bug.name, detail, wrong.astype(np.float32)
        if layer != "linear":
            order = np.roll(np.random.default_rng(1).permutation(right.shape[1]), 1)
            yield "channels-permuted", "at random", self.outputs[layer][:, order]


def _small(case: Case, layer: str) -> list[Finding]:
    """Findings where the layer is within its bound."""
    return case.small_findings(layer) if case.estimates.alarms else []


def findings_of(port: Port, layer: str, wrong: Array) -> list[Finding]:
    """What the oracle says of one layer, the others being right; nothing if it is right."""
    x, y_hat = port.inputs[layer], wrong.astype(np.float64)
    compared = compare(port.programs[layer], x, y_hat, FP32)
    outputs = Outputs(port.outputs | {layer: wrong})
    case = Case(port.programs, {layer: compared}, port.x, outputs, FP32)
    return _small(case, layer) if compared.report.ok else case.findings(layer)


def ask(port: Port, layer: str, wrong: Array) -> tuple[bool, list[str], float]:
    """The oracle on one layer: detected, names it gives (top first, equivalents), explained."""
    found = findings_of(port, layer, wrong)
    if not found:
        return False, [], 0.0
    top = found[0]
    return True, [top.bug, *top.equivalents], top.explains


def study(model: Model, x: Array) -> list[Plant]:
    """Every plant of one model."""
    port = Port(model, x)

    def layer_plants(layer: str) -> list[Plant]:
        done = []
        for bug, detail, wrong in port.plants(layer):
            detected, names, explains = ask(port, layer, wrong)
            top = names[0] if names else ""
            done.append(Plant(bug, layer, detail, detected, bug in names, top, explains))
        return done

    with single_threaded_blas(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(layer_plants, port.names)
        return [p for plants in track(results, model.name, len(port.names)) for p in plants]


def logits_study(model: Model, x: Array, count: int) -> list[Plant]:
    """The oracle on logits alone, for `count` plants drawn at random."""
    port = Port(model, x)
    chain = Chain(port.programs, x)
    plants = [(layer, *plant) for layer in port.names for plant in port.plants(layer)]
    drawn = np.random.default_rng(0).permutation(len(plants))[:count]
    done = []
    for at in track(drawn, f"{model.name}, logits only"):
        layer, bug, detail, wrong = plants[at]
        wrong = chain.logits_after(layer, wrong.astype(np.float64)).astype(np.float32)
        report = judge(model, Outputs({"linear": wrong}), x)
        top = report.diagnosis[0] if report.diagnosis else None
        named = top is not None and bug in (top.bug, *top.equivalents)
        said = top.bug if top else report.verdict
        detected = report.verdict == "disagree"
        done.append(Plant(bug, layer, detail, detected, named, said, top.explains if top else 0.0))
    return done


def verify_from(port: Port, layer: str, wrong: Array) -> str | None:
    """First bad layer of a port whose layers after `layer` are right again."""
    comparisons: dict[str, Comparison] = {}
    layers: dict[str, Array] = {}
    x = port.x
    for name in port.names:
        right = layer_output(port.programs[name], x.astype(np.float64)).astype(np.float32)
        y = layers[name] = wrong if name == layer else right
        given, seen = x.astype(np.float64), y.astype(np.float64)
        comparisons[name] = compare(port.programs[name], given, seen, FP32)
        if comparisons[name].bound is None:
            break  # another shape: nothing after it can be compared
        x = y
    return explain(Case(port.programs, comparisons, port.x, Outputs(layers), FP32)).first_bad_layer


def table(name: str, plants: list[Plant]) -> Table:
    """Bug by bug: planted, detected, named."""
    shown = Table("bug", "planted", "detected", "named", "else called", title=name)
    for bug in dict.fromkeys(plant.bug for plant in plants):
        mine = [plant for plant in plants if plant.bug == bug]
        wrong = Counter(plant.top for plant in mine if plant.detected and not plant.named)
        shown.add_row(
            bug,
            str(len(mine)),
            f"{sum(p.detected for p in mine) / len(mine):.0%}",
            f"{sum(p.named for p in mine) / len(mine):.0%}",
            ", ".join(f"{top} x{n}" for top, n in wrong.most_common(3)),
        )
    return shown


def main() -> None:
    """Run the study and print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*", default=["A0"], help="official, or a small one's")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--logits", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    console, results = Console(width=120), {}
    for name in arguments.model:
        model = distinguishing_model(SMALL.get(name) or rr.architecture(name))
        x = distinguishing_inputs(model.arch, height=arguments.size, width=arguments.size - 4)
        plants = logits_study(model, x, arguments.logits) if arguments.logits else study(model, x)
        console.print(table(name, plants))
        detected = sum(p.detected for p in plants) / len(plants)
        named = sum(p.named for p in plants) / len(plants)
        console.print(f"{name}: {len(plants)} planted, {detected:.2%} detected, {named:.2%} named")
        results[name] = {
            "planted": len(plants),
            "detected": detected,
            "named": named,
            "not_named": [asdict(p) for p in plants if not p.named],
        }
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
