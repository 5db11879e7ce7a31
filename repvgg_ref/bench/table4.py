"""The paper's Table 4 on this machine: whether the order of speeds holds off the GPU.

The paper's figures are images a second of a GTX 1080Ti, batch 128, float32 (arXiv 2101.03697,
Table 4). Here everything runs on this package's convolutions, so only the order can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

from repvgg_ref.bench.race import race_networks
from repvgg_ref.bench.result import Measured
from repvgg_ref.bench.task import Task

PAPER: dict[str, int] = {
    "RepVGG-A0": 3256,
    "ResNet-18": 2442,
    "RepVGG-A1": 2339,
    "RepVGG-B0": 1817,
    "ResNet-34": 1419,
    "RepVGG-A2": 1322,
    "RepVGG-B1g4": 868,
    "RepVGG-B1g2": 792,
    "ResNet-50": 719,
    "RepVGG-B1": 685,
    "VGG-16": 415,
}


@dataclass(frozen=True)
class Row:
    """A network's speed here and in the paper, images a second; `gflops` is effective."""

    name: str
    here: float
    paper: int
    gflops: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Table4:
    """All rows in the paper's order, and how well the orders agree."""

    task: Task
    rows: tuple[Row, ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's: 1 for the same order, 0 for no connection."""
        from scipy.stats import spearmanr

        found = spearmanr([row.here for row in self.rows], [row.paper for row in self.rows])
        return float(found.statistic)

    @property
    def exchanged(self) -> list[tuple[str, str]]:
        """Pairs whose order is not the paper's: the first is faster there, the second here."""
        return [(a.name, b.name) for a, b in combinations(self.rows, 2) if not a.here > b.here]

    def as_json(self) -> dict[str, Any]:
        """Everything, all rounds included."""
        return {
            **self.task.as_json(),
            "kind": "table4",
            "network": "all",
            "rounds": len(self.rows[0].seconds),
            "rank_correlation": self.rank_correlation,
            "exchanged": [list(pair) for pair in self.exchanged],
            "rows": [
                {
                    "name": row.name,
                    "images_per_second": row.here,
                    "paper_images_per_second": row.paper,
                    "gflops": row.gflops,
                    "seconds": list(row.seconds),
                }
                for row in self.rows
            ],
        }


def race_table4(
    task: Task,
    *,
    rounds: int,
    networks: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Table4:
    """Run `networks`, by default all of `PAPER`, in turns, each as `task` says but for its name."""
    tasks = [replace(task, network=name) for name in networks or PAPER]
    measured = race_networks(tasks, rounds=rounds, progress=progress)
    return Table4(task, tuple(map(_row, tasks, measured)))


def _row(task: Task, one: Measured) -> Row:
    seconds = median(one.seconds)
    return Row(
        task.network,
        task.batch / seconds,
        PAPER[task.network],
        2 * task.macs / seconds / 1e9,
        tuple(one.seconds),
    )
