"""Every planted bug of a small network's layers: is it placed, and is it named?

    python -m tests.studies.oracle.faults_by_layer repvit|mobileone [--every 8]

A port has one bug in one layer (each of the library's, wherever it computes another function) and
gives float32 outputs of all layers; `verify` has to call it wrong, name the layer first, and the
bug first of what it says of that layer. One of `every` mutants is tried.
"""

from __future__ import annotations

import argparse
from collections import Counter

import repvgg_ref as rr
from repvgg_ref.models.graph import Network
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.models.repvit import repvit
from repvgg_ref.oracle.golden.mutation import mutation_matrix
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import golden_inputs
from repvgg_ref.oracle.programs.layers import Programs
from tests.oracle.faulty_ports import counted, layer_by_layer, planted_in


def network(name: str) -> Network:
    """A small one with every operation of the published ones."""
    if name == "repvit":
        return repvit("small", widths=(8, 16, 24), depths=(2, 1, 2), num_classes=5)
    return mobileone(
        "small",
        widths=(0.1, 0.1, 0.15, 0.1),
        copies=2,
        gates=(0, 0, 1, 1),
        depths=(1, 1, 2, 1),
        num_classes=5,
    )


def tried(name: str, every: int) -> tuple[Counter[str], list[str]]:
    """How many mutants were placed and named, and those that were not."""
    model = distinguishing_model(network(name), seed=3)
    x = golden_inputs(model.arch, seed=3)
    programs, known = Programs(model), counted(mutation_matrix(model, x))
    found, missed, number = Counter[str](mutants=len(known)), list[str](), 0
    for layer in programs:
        for mutant in planted_in(programs, x, layer):
            if (mutant.bug.name, layer, mutant.variant.label) not in known:
                continue
            number += 1
            if number % every:
                continue
            outputs = layer_by_layer(programs, x, layer, mutant.variant.program)
            if outputs is None:  # of another shape: nothing is to be explained
                continue
            report = rr.verify(model, outputs, inputs=x)
            here = [finding for finding in report.diagnosis if finding.layer == layer]
            placed = (report.verdict, report.first_bad_layer) == ("disagree", layer)
            named = bool(here) and here[0].bug == mutant.bug.name
            same = any(mutant.bug.name in (f.bug, *f.equivalents) for f in here)
            found.update(tried=1, placed=placed, named=named, as_equivalent=same and not named)
            if not (placed and same):
                missed.append(f"{mutant.bug.name} ({mutant.variant.label}) in {layer}")
    return found, missed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=["repvit", "mobileone"])
    parser.add_argument("--every", type=int, default=8)
    asked = parser.parse_args()
    found, missed = tried(asked.network, asked.every)
    print(", ".join(f"{count} {what}" for what, count in found.items()))
    print("\n".join(missed))


if __name__ == "__main__":
    main()
