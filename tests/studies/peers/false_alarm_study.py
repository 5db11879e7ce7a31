"""Is a correct port ever accused? Many networks, many seeds, every runtime at every precision.

    python tests/studies/peers/false_alarm_study.py --seeds 20
    python tests/studies/peers/false_alarm_study.py --seeds 20 --models RepVGG-D2se --share 2

Prints a table and writes one JSON file a network to ``results`` beside this file. With `--share`
each seed tries that many of the candidates, in rotation, so that large networks take their turns.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # run as a script, from anywhere

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle import Report, verify
from tests.peers.calibrated import SMALL, fresh_folder, model_and_inputs
from tests.peers.right_candidates import RightCandidate, all_candidates

RESULTS = Path(__file__).parent / "results"
MODELS = ("digits", *SMALL, "RepVGG-A0", "RepVGG-B0", "RepVGG-B1g4", "RepVGG-D2se")


@dataclass
class Tally:
    """All verdicts on one candidate for one network.

    `used` and `likely` are the largest shares of the certified and of the likely bound in any
    layer; `median_used` is the median over layers of each layer's largest share.
    """

    candidate: str
    precision: str
    runs: int = 0
    agree: int = 0
    used: float = 0.0
    likely: float = 0.0
    median_used: float = 0.0
    winograd_layers: int = 0
    not_agree: list[dict[str, object]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def add(self, seed: int, report: Report) -> None:
        """Count one verdict."""
        self.runs += 1
        self.agree += report.verdict == "agree"
        self.winograd_layers += sum("arithmetic" in layer.note for layer in report.layers)
        self.ratios += [layer.ratio for layer in report.layers]
        self.used = max([self.used, *(layer.ratio for layer in report.layers)])
        self.likely = max([self.likely, *(layer.likely_ratio for layer in report.layers)])
        if report.verdict != "agree":
            bugs = [finding.bug for finding in report.diagnosis]
            what = {"verdict": report.verdict, "reason": report.reason, "bugs": bugs}
            self.not_agree.append({"seed": seed, **what})

    def summary(self) -> dict[str, object]:
        """What the JSON file keeps."""
        self.median_used = statistics.median(self.ratios) if self.ratios else 0.0
        return {k: v for k, v in asdict(self).items() if k != "ratios"}


def chosen(candidates: list[RightCandidate], seed: int, share: int) -> Iterator[RightCandidate]:
    """`share` of the candidates (0: all), others for the next seed, of every runtime by turns."""
    count = len(candidates)
    step = next(s for s in range(max(count // 3, 1), 2 * count) if math.gcd(s, count) == 1)
    for turn in range(share or count):
        yield candidates[(seed * share + turn) * step % count]


def study(name: str, seeds: int, share: int) -> Iterator[list[Tally]]:
    """Every chosen candidate on one network; all tallies so far, after every seed."""
    candidates = [c for c in all_candidates() if c.installed]
    tallies: dict[str, Tally] = {}
    for seed in range(seeds):
        model, x = model_and_inputs(name, seed)
        suited = [c for c in candidates if c.suits(model)]
        for candidate in chosen(suited, seed, share):
            with tempfile.TemporaryDirectory() as folder:
                report = judged(model, x, candidate, Path(folder))
            tally = tallies.setdefault(candidate.name, Tally(candidate.name, candidate.precision))
            tally.add(seed, report)
            if report.verdict != "agree":
                print(f"{name} seed {seed} {candidate.name}: {report.verdict}: {report.reason}")
        yield list(tallies.values())


def judged(model: Model, x: Array, candidate: RightCandidate, folder: Path) -> Report:
    """The verdict on one correct port."""
    port = candidate.build(model, fresh_folder(folder, "port"))
    return verify(model, port, inputs=x, precision=candidate.precision)


def show(name: str, tallies: list[Tally], seconds: float) -> None:
    """The table of one network."""
    runs, agree = sum(t.runs for t in tallies), sum(t.agree for t in tallies)
    print(f"\n{name}: {agree} of {runs} agree, {seconds:.0f} s")
    print(
        f"{'candidate':38} {'held to':8} {'runs':>4} {'agree':>5} {'max':>7} {'median':>7} likely"
    )
    for t in tallies:
        numbers = f"{t.used:7.1%} {t.median_used:7.2%} {t.likely:6.1%}"
        print(f"{t.candidate:38} {t.precision:8} {t.runs:4} {t.agree:5} {numbers}")


def _write(path: Path, record: dict[str, object], tallies: list[Tally], seconds: float) -> None:
    """What is known so far: a study that is stopped has not been for nothing."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    kept = {"candidates": [tally.summary() for tally in tallies]}
    whole = record | {"seconds": round(seconds), "peak_mb": peak} | kept
    path.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> int:
    """Run the study; exit code 1 if anybody was accused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--share", type=int, default=0, help="candidates a seed; 0: all")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    accused = 0
    for name in options.models:
        start = time.perf_counter()
        tallies: list[Tally] = []
        for done, tallies in enumerate(study(name, options.seeds, options.share), 1):
            seconds = time.perf_counter() - start
            record = {"model": name, "seeds": done, "share": options.share}
            _write(options.out / f"false-alarm-{name}.json", record, tallies, seconds)
        show(name, tallies, time.perf_counter() - start)
        accused += sum(tally.runs - tally.agree for tally in tallies)
    print(f"\n{accused} correct ports not agreed with")
    return 1 if accused else 0


if __name__ == "__main__":
    sys.exit(main())
