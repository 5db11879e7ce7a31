"""How long one image takes, the slow calls too: ``python -m tests.studies.bench.latency``.

Median, 99th percentile and longest of `--calls` calls of a network on one image, ours and every
installed peer's fastest variant, each in a process of its own. They are called in turns, one image
each, the first one moving on from turn to turn; between two calls threads come to rest, as those of
a server do that waits for its next request. First calls, which pack weights and start processes,
are not among them. Prints a table, and how much of the machine something else used.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.bench.contenders.base import BRANCHES, DIRECT
from repvgg_ref.bench.machine import Watch
from repvgg_ref.bench.peers import choose_entries
from repvgg_ref.bench.race import Heats
from repvgg_ref.bench.rival import Rival
from repvgg_ref.bench.task import Task
from repvgg_ref.cpu.workers.pool import default_threads


class Latency(NamedTuple):
    """A contender's name and variant, and the seconds of its calls."""

    name: str
    variant: str
    seconds: Array

    def row(self, ours: Latency) -> str:
        """Milliseconds, and by how much they are more than `ours`."""
        shares = [float(np.quantile(self.seconds, q)) for q in (0.5, 0.99, 1.0)]
        of_ours = [float(np.quantile(ours.seconds, q)) for q in (0.5, 0.99)]
        times = "".join(f"{1e3 * each:9.2f}" for each in shares)
        ratios = "".join(f"{a / b:9.2f}" for a, b in zip(shares, of_ours, strict=False))
        return f"{self.name:14}{self.variant:22}{times}{ratios}"


def in_turns(rivals: list[tuple[str, str, Rival]], calls: int) -> list[Latency]:
    """Everyone's calls, one image each."""
    seconds = np.empty((len(rivals), calls))
    for call in range(calls):
        for step in range(len(rivals)):
            k = (call + step) % len(rivals)
            seconds[k, call] = rivals[k][2].ask("turn", repeats=1)["seconds"]
    return [Latency(*rivals[k][:2], seconds[k]) for k in range(len(rivals))]


def main() -> None:
    """Race and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="RepVGG-A0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--against", nargs="+", help="default: all that are installed")
    asked = parser.parse_args()
    task = Task("inference", asked.model, 1, asked.size, asked.threads)
    entries, left_out = choose_entries(asked.against, task)
    entries = [entry for entry in entries if entry.name not in (DIRECT, BRANCHES)]
    watch = Watch()
    with Heats() as heats:
        found = [made for entry in entries if (made := heats.run(entry, task))]
        rivals = [(measured.name, rival.variant, rival) for rival, measured in found]
        latencies = in_turns(rivals, asked.calls)
    others = watch.others()
    print(f"{asked.model}, one image, {asked.threads} threads, {asked.calls} calls each in turns;")
    shown = "unknown" if others is None else f"{100 * others:.0f} %"
    print(f"others used of the machine: {shown}. Milliseconds, and times ours:")
    print(f"{'':36}{'p50':>9}{'p99':>9}{'longest':>9}{'p50':>9}{'p99':>9}")
    for each in latencies:
        print(each.row(latencies[0]))
    for one in [*left_out, *heats.skipped]:
        print(f"{one.name}: {one.reason}")


if __name__ == "__main__":
    main()
