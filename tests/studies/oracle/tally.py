"""What right ports show: p-values of every test, and verdicts, counted for each arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.bench.picture import Bar, Panel, render_panels
from repvgg_ref.oracle.estimates.estimate import FALSE_ALARM
from repvgg_ref.oracle.estimates.port import PortEstimates

_BIN = 0.25  # decades
_BINS = 80
_LEAST = 1e-300


@dataclass
class Tally:
    """All runs of one arithmetic.

    Attributes
    ----------
    runs, judged : int
        Ports estimated, and how many of them were given to `judge` as well.
    tests, histogram : int, list of int
        P-values, and how many lie in each quarter of a decade below 1.
    smallest : list of float
        Of each run the smallest p-value times the number of tests: below 1e-6 is an alarm.
    alarms, not_agree : list
        Runs with alarms, and verdicts other than "agree", with what was said.
    """

    runs: int = 0
    judged: int = 0
    tests: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * _BINS)
    smallest: list[float] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    not_agree: list[dict[str, Any]] = field(default_factory=list)

    def add(self, found: PortEstimates, **what: Any) -> None:
        """Count one port."""
        p = np.array(
            [max(e.p_value, _LEAST) for listed in found.estimates.values() for e in listed]
        )
        decades = np.minimum(-np.log10(p) / _BIN, _BINS - 1).astype(int)
        self.histogram = (np.array(self.histogram) + np.bincount(decades, minlength=_BINS)).tolist()
        self.runs += 1
        self.tests += len(p)
        self.smallest.append(float(f"{min(1.0, p.min() * len(p)):.3g}"))
        if found.alarms:
            said = {n: [e.says for e in listed[:3]] for n, listed in found.alarms.items()}
            self.alarms.append({**what, "alarms": said, "arithmetic": found.arithmetic.says})

    def add_verdict(self, report: Any, **what: Any) -> None:
        """Count one verdict."""
        self.judged += 1
        if report.verdict != "agree":
            bugs = [f"{finding.bug} in {finding.layer}" for finding in report.diagnosis]
            what |= {"verdict": report.verdict, "reason": report.reason, "bugs": bugs}
            self.not_agree.append(what)

    def merge(self, other: Tally) -> None:
        """Add the runs of another."""
        self.runs, self.judged = self.runs + other.runs, self.judged + other.judged
        self.tests += other.tests
        self.histogram = (np.array(self.histogram) + other.histogram).tolist()
        for name in ("smallest", "alarms", "not_agree"):
            getattr(self, name).extend(getattr(other, name))

    def decades(self, share: float) -> float:
        """``-log10 p`` that this share of all tests stays below."""
        reached = np.searchsorted(np.cumsum(self.histogram), share * self.tests)
        return _BIN * (int(reached) + 1)


def write(path: Path, tallies: Mapping[str, Tally], about: Mapping[str, Any]) -> None:
    """The tallies as JSON and, beside it, drawn."""
    runs = sum(tally.runs for tally in tallies.values())
    whole = {
        **about,
        "runs": runs,
        "judged": sum(tally.judged for tally in tallies.values()),
        "alarms": sum(len(tally.alarms) for tally in tallies.values()),
        "not_agree": sum(len(tally.not_agree) for tally in tallies.values()),
        "arithmetics": {name: asdict(tally) for name, tally in tallies.items()},
    }
    path.write_text(json.dumps(whole, indent=None, separators=(",", ":")) + "\n")
    heading = f"p-values of right ports: {runs} runs, {len(tallies)} arithmetics"
    path.with_suffix(".svg").write_text(render_panels(heading, list(_panels(tallies))))


def read(path: Path) -> dict[str, Tally]:
    """What `write` has written."""
    found = json.loads(path.read_text())["arithmetics"]
    return {name: Tally(**tally) for name, tally in found.items()}


def _panels(tallies: Mapping[str, Tally]) -> Iterable[Panel]:
    bars = [
        Bar(
            name,
            tally.decades(0.99),
            f"{tally.runs} runs, {tally.tests} tests",
            tally.decades(0.9),
            tally.decades(0.999),
        )
        for name, tally in tallies.items()
    ]
    title = (
        "-log10 p of single tests: bar to the 99th percentile (2 if exact), whisker 90 % to 99.9 %"
    )
    yield Panel(title, tuple(bars), 2.0, "exact")
    least = -float(np.log10(FALSE_ALARM))
    bars = []
    for name, tally in tallies.items():
        p = -np.log10(np.maximum(tally.smallest, 1e-20))
        alarms = f"{len(tally.alarms)} alarms, {len(tally.not_agree)} of {tally.judged} not agree"
        bars.append(Bar(name, float(np.quantile(p, 0.9)), alarms, mark=float(p.max())))
    title = (
        "-log10 of a run's smallest p times its tests: bar to the 90th percentile, tick: largest"
    )
    yield Panel(title, tuple(bars), least, "alarm")
