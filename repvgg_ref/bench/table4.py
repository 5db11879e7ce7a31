"""The paper's Tables 4 and 5 on this machine: whether the order of speeds holds off the GPU.

The paper's figures are images a second of a GTX 1080Ti, batch 128, float32 (arXiv 2101.03697,
Tables 4 and 5). Here everything runs on this package's convolutions, so only the order and the
factors between networks can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from statistics import median
from typing import Any

from repvgg_ref.bench.claims import CLAIMS, Judged, judged
from repvgg_ref.bench.density import measured_density
from repvgg_ref.bench.race import Progress, race_networks
from repvgg_ref.bench.result import Measured
from repvgg_ref.bench.task import Task

PAPER: dict[str, int | None] = {
    "RepVGG-A0": 3256,
    "ResNet-18": 2442,
    "RepVGG-A1": 2339,
    "RepVGG-B0": 1817,
    "ResNet-34": 1419,
    "RepVGG-A2": 1322,
    "RepVGG-B1g4": 868,
    "EfficientNet-B0": 829,
    "RepVGG-B1g2": 792,
    "ResNet-50": 719,
    "RepVGG-B1": 685,
    "RegNetX-3.2GF": 671,
    "RepVGG-B2g4": 581,
    "RepVGG-B3g4": 464,
    "RepVGG-B2": 460,
    "ResNet-101": 430,
    "VGG-16": 415,
    "RepVGG-B3": 363,
    "ResNet-152": 297,
    "ResNeXt-50": None,
    "ResNeXt-101": None,
    "RegNetX-12GF": None,
    "EfficientNet-B3": None,
}
"""Images a second; None where the paper's figure was not at hand when this was written."""

LARGER = {"EfficientNet-B3": 300}
"""Networks whose images are larger where the others' have 224 pixels a side."""


@dataclass(frozen=True)
class Row:
    """A network's speed here and in the paper, images a second; `gflops` is effective."""

    name: str
    here: float
    paper: int | None
    gflops: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Table4:
    """All rows in the paper's order, and how well the orders agree; the paper's claims."""

    task: Task
    rows: tuple[Row, ...]
    density: Mapping[int, float] = field(default_factory=dict)

    @property
    def rank_correlation(self) -> float:
        """Spearman's: 1 for the same order, 0 for no connection."""
        from scipy.stats import spearmanr

        found = spearmanr([row.here for row in self._known], [row.paper for row in self._known])
        return float(found.statistic)

    @property
    def exchanged(self) -> list[tuple[str, str]]:
        """Pairs whose order is not the paper's: the first is faster there, the second here."""
        return [(a.name, b.name) for a, b in combinations(self._known, 2) if not a.here > b.here]

    @property
    def _known(self) -> list[Row]:
        return [row for row in self.rows if row.paper is not None]

    @property
    def claims(self) -> list[Judged]:
        """The paper's claims on the networks that were raced."""
        return judged({row.name: row.seconds for row in self.rows}, self.density)

    def as_json(self) -> dict[str, Any]:
        """Everything, all rounds included."""
        return {
            **self.task.as_json(),
            "kind": "table4",
            "network": "all",
            "rounds": len(self.rows[0].seconds),
            "rank_correlation": self.rank_correlation,
            "exchanged": [list(pair) for pair in self.exchanged],
            "claims": [claim._asdict() for claim in self.claims],
            "density": [{"kernel": k, "gflops": speed} for k, speed in self.density.items()],
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
    progress: Progress | None = None,
) -> Table4:
    """Run `networks`, by default all of `PAPER`, each as `task` says but for its name.

    They run in heats whose networks take turns; those that a claim compares are in one heat. All
    at once would need the memory of all. Images of the networks in `LARGER` are larger by as much
    as the paper's.
    """
    names = list(networks or PAPER)
    tasks = {
        name: replace(task, network=name, size=round(task.size * LARGER.get(name, 224) / 224))
        for name in names
    }
    raced: dict[str, Row] = {}
    for heat in heats(names):
        measured = race_networks(
            [tasks[name] for name in heat],
            rounds=rounds,
            progress=_part(progress, len(raced), len(heat), len(names)),
        )
        raced |= {name: _row(tasks[name], one) for name, one in zip(heat, measured, strict=True)}
    density = measured_density(rounds=rounds, threads=task.threads)
    return Table4(task, tuple(raced[name] for name in names), density)


def _part(progress: Progress | None, before: int, here: int, all_: int) -> Progress | None:
    """Counts a heat's steps as a part of all; each network takes as many."""
    if progress is None:
        return None
    return lambda what, done, total: progress(
        what, before * total // here + done, all_ * total // here
    )


def heats(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Split `names` into pairs that a claim compares, and pairs of what is left."""
    claimed = [
        (claim.faster, claim.slower)
        for claim in CLAIMS
        if {claim.faster, claim.slower} <= set(names)
    ]
    left = [name for name in names if name not in set(chain(*claimed))]
    return claimed + [tuple(left[i : i + 2]) for i in range(0, len(left), 2)]


def _row(task: Task, one: Measured) -> Row:
    seconds = median(one.seconds)
    return Row(
        task.network,
        task.batch / seconds,
        PAPER[task.network],
        2 * task.macs / seconds / 1e9,
        tuple(one.seconds),
    )
