"""Two bugs in one layer at once, both of the library or one of none: are both told?

    python -m tests.studies.oracle.pairs --network plain --seconds 100

A right float32 port's layer is replaced by that of a program with two bugs, with the port's own
rounding on top, and the oracle is asked about that layer. Pairs are drawn at random; where one of
two changes less than a thousandth of what the other does they are no pair. Both are told if the
known ones are named (or listed as equivalent), and the unknown one is said to be there, too. Adds
to ``results/pairs.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import LAYER_BUGS, Mutant
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT
from repvgg_ref.oracle.diagnosis.small import ESTIMATED
from repvgg_ref.oracle.programs.program import batch_output, layer_output
from tests.studies.oracle.matrix_study import Port, findings_of
from tests.studies.oracle.networks import network_and_inputs
from tests.studies.oracle.strangers import BLOCK

RESULTS = Path(__file__).parent / "results" / "pairs.json"
_LEAST = 1e-3  # of what one bug changes, by the other
# Strangers that the library knows by another name.
_ALSO_CALLED = {
    "two channels exchanged": "channels-permuted",
    "first channels reversed": "channels-permuted",
}
_SAMPLE = 400  # of the mutants of a layer

Drawn = tuple[str, str, str, Array]  # layer, first bug, second bug, the faulty output


class Pairs:
    """Pairs of bugs in one port, drawn at random."""

    def __init__(self, network: str, seed: int) -> None:
        self.port = Port(*network_and_inputs(network, seed, (32, 28)))
        self.rng = np.random.default_rng(seed)

    def known(self) -> Drawn | None:
        """Two bugs of the library."""

        def second(first: Mutant[Any], site: Any) -> tuple[str, Any]:
            chosen = self._mutant(replace(site, program=first.variant.program))
            return chosen.bug.name, chosen.variant.program

        return self._drawn(
            second,
            lambda site, name: next(
                m.variant.program for m in planted(LAYER_BUGS, site) if m.bug.name == name
            ),
        )

    def with_stranger(self) -> Drawn | None:
        """One of the library and one that is not."""

        def second(first: Mutant[Any], _site: Any) -> tuple[str, Any]:
            kind = str(self.rng.choice(list(BLOCK)))
            return kind, BLOCK[kind](first.variant.program)

        return self._drawn(second, lambda site, kind: BLOCK[kind](site.program))

    def _mutant(self, site: Any) -> Mutant[Any]:
        made = list(planted(LAYER_BUGS, site))[:_SAMPLE]
        return made[self.rng.integers(len(made))]

    def _drawn(self, second: Callable[..., Any], alone: Callable[..., Any]) -> Drawn | None:
        """One pair; None if it is none."""
        layer = str(self.rng.choice([name for name in self.port.names if name != "linear"]))
        x = self.port.inputs[layer]
        site = site_of(self.port.programs, layer, x, self.port.outputs[layer])
        first = self._mutant(site)
        right = layer_output(self.port.programs[layer], x)
        try:
            name, program = second(first, site)
            outputs = [
                batch_output(each, x)
                for each in (program, first.variant.program, alone(site, name))
            ]
        except (*DO_NOT_FIT, StopIteration, FloatingPointError):
            return None
        both, *singles = outputs
        if name == first.bug.name or any(y.shape != right.shape for y in outputs):
            return None
        size = float(np.linalg.norm(both - right))
        own = min(float(np.linalg.norm(both - single)) for single in singles)
        if not np.isfinite(both).all() or not own > _LEAST * size > 0:
            return None
        noise = np.where((both == 0), 0.0, self.port.outputs[layer] - right)
        return layer, first.bug.name, name, (both + noise).astype(np.float32)

    def told(self, drawn: Drawn) -> tuple[bool, bool, list[str]]:
        """Whether the first and the second are told, and the names that were."""
        layer, first, second, wrong = drawn
        found = findings_of(self.port, layer, wrong)
        names = {name for each in found for name in (each.bug, *each.equivalents)}
        strange = second in BLOCK and bool(names & ({"unknown"} | ESTIMATED))
        known = _ALSO_CALLED.get(second, second) in names
        return first in names, known or strange, [each.bug for each in found]


def study(network: str, seed: int, kind: str, until: float) -> dict[str, Any]:
    """As many pairs as the time allows."""
    pairs = Pairs(network, seed)
    draw = pairs.known if kind == "known" else pairs.with_stranger
    counts: Counter[str] = Counter()
    missed = []
    while time.monotonic() < until:
        with np.errstate(all="ignore"):
            drawn = draw()
            if drawn is None:
                continue
            first, second, names = pairs.told(drawn)
        counts["pairs"] += 1
        counts["caught"] += bool(names)
        counts["one told"] += first or second
        counts["both told"] += first and second
        if not (first and second):
            missed.append({"layer": drawn[0], "bugs": drawn[1:3], "called": names})
    return {"network": network, "seed": seed, "kind": kind, **counts, "missed": missed}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=100, help="for each kind of pairs")
    parser.add_argument("--kinds", nargs="+", default=("known", "unknown"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    done = json.loads(asked.out.read_text()) if asked.out.exists() else []
    for kind in asked.kinds:
        found = study(asked.network, asked.seed, kind, time.monotonic() + asked.seconds)
        print({key: value for key, value in found.items() if key != "missed"})
        done.append(found)
    asked.out.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
