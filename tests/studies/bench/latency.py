"""How long one image takes, the slow calls too: ``python -m tests.studies.bench.latency``.

Median, 99th percentile and longest of `--calls` calls of a network on one image, ours and every
installed peer's fastest variant, each in a process of its own. They are called in turns, one image
each, the first one moving on from turn to turn; between two calls threads come to rest, as those of
a server do that waits for its next request. First calls, which pack weights and start processes,
are not among them: ours are timed by themselves, each in a fresh process whose model is there.
Prints a table, and how much of the machine something else used; `--out` keeps that as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.bench.contenders.base import BRANCHES, DIRECT
from repvgg_ref.bench.machine import Watch, machine
from repvgg_ref.bench.peers import choose_entries
from repvgg_ref.bench.race import Heats
from repvgg_ref.bench.rival import Rival
from repvgg_ref.bench.task import Task
from repvgg_ref.cpu.workers.pool import default_threads

SHARES = {"p50": 0.5, "p99": 0.99, "longest": 1.0}
FIRST_CALLS = 7
FIRST_CALL = """
import sys, time
import numpy as np
from repvgg_ref.models.network import build, fuse
model = fuse(build(sys.argv[1]))
x = np.random.default_rng(0).standard_normal((1, 3, int(sys.argv[2]), int(sys.argv[2])), np.float32)
began = time.perf_counter()
model.forward(x)
print(time.perf_counter() - began)
"""


class Latency(NamedTuple):
    """A contender's name and variant, and the seconds of its calls."""

    name: str
    variant: str
    seconds: Array

    def shares(self) -> dict[str, float]:
        """Seconds that half of the calls, 99 in 100 and all of them stay within."""
        return {key: float(np.quantile(self.seconds, share)) for key, share in SHARES.items()}

    def row(self, ours: Latency) -> str:
        """Milliseconds, and by how much they are more than `ours`."""
        shares, of_ours = self.shares(), ours.shares()
        times = "".join(f"{1e3 * each:9.2f}" for each in shares.values())
        ratios = "".join(f"{shares[key] / of_ours[key]:9.2f}" for key in ("p50", "p99"))
        return f"{self.name:14}{self.variant:22}{times}{ratios}"


def in_turns(rivals: list[tuple[str, str, Rival]], calls: int) -> list[Latency]:
    """Everyone's calls, one image each."""
    seconds = np.empty((len(rivals), calls))
    for call in range(calls):
        for step in range(len(rivals)):
            k = (call + step) % len(rivals)
            seconds[k, call] = rivals[k][2].ask("turn", repeats=1)["seconds"]
    return [Latency(*rivals[k][:2], seconds[k]) for k in range(len(rivals))]


def first_calls(model: str, size: int) -> list[float]:
    """Seconds of the first image, each time in a fresh process."""
    command = [sys.executable, "-c", FIRST_CALL, model, str(size)]
    return sorted(float(subprocess.check_output(command)) for _ in range(FIRST_CALLS))


def document(
    asked: argparse.Namespace, others: float | None, found: list[Latency], first: list[float]
) -> dict[str, Any]:
    """What `--out` keeps."""
    return {
        "model": asked.model,
        "size": asked.size,
        "calls": asked.calls,
        "threads": asked.threads,
        "machine": machine(),
        "others": others,
        "first_calls": first,
        "contenders": [
            {"name": each.name, "variant": each.variant, **each.shares()} for each in found
        ],
    }


def main() -> None:
    """Race and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="RepVGG-A0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--against", nargs="+", help="default: all that are installed")
    parser.add_argument("--out", type=Path, help="a JSON file")
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
    first = first_calls(asked.model, asked.size)
    print(f"our first call: {1e3 * first[len(first) // 2]:.0f} ms, median of {len(first)}")
    if asked.out:
        kept = document(asked, others, latencies, first)
        asked.out.write_text(json.dumps(kept, indent=1) + "\n")
    for one in [*left_out, *heats.skipped]:
        print(f"{one.name}: {one.reason}")


if __name__ == "__main__":
    main()
