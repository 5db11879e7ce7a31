"""What a benchmark found, as values that become JSON, a table or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from repvgg_ref.bench.task import Task


@dataclass(frozen=True)
class Spread:
    """Ratios of all rounds; above 1: ours is faster. `low` and `high` are the quartiles."""

    median: float
    low: float
    high: float
    all: tuple[float, ...]


def spread(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Ratio of what stands at the same place: noise that lasts for a round hits both alike."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    if len(ratios) == 1:
        return Spread(ratios[0], ratios[0], ratios[0], tuple(ratios))
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return Spread(middle, low, high, tuple(ratios))


@dataclass
class Measured:
    """One contender's rounds.

    Attributes
    ----------
    variant, tried : str, dict
        The way it was run, the fastest of those tried: variant -> seconds of one run.
    error : float
        Largest difference from our outputs over our largest output; ours has 0.
    seconds, cpu_seconds : list of float
        Of one run, a mean of `repeats`, round by round.
    memory : dict
        Bytes: `loaded` and `peak` beyond the bare framework, and by theory where we know it.
    """

    name: str
    variant: str
    version: str | None
    error: float
    tried: dict[str, float]
    repeats: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A contender, or one of its variants, that was not timed, and why."""

    name: str
    reason: str
    mend: str | None = None


@dataclass
class Race:
    """All contenders on one task; the first one is ours."""

    task: Task
    contenders: list[Measured]
    skipped: list[Skipped]
    layers: dict[str, Any] | None = None

    @property
    def ours(self) -> Measured:
        """The contender that the others are compared with."""
        return self.contenders[0]

    def ratio(self, other: Measured) -> Spread:
        """Their wall-clock seconds over ours."""
        return spread(other.seconds, self.ours.seconds)

    def cpu_ratio(self, other: Measured) -> Spread:
        """Their processor seconds over ours, which other work on the machine disturbs less."""
        return spread(other.cpu_seconds, self.ours.cpu_seconds)

    def images_per_second(self, one: Measured) -> float:
        """At the median of the rounds."""
        return self.task.batch / median(one.seconds)

    def gflops(self, one: Measured) -> float:
        """Effective: as if all multiply-accumulates of the direct form had been done."""
        return 2 * self.task.macs / median(one.seconds) / 1e9

    def as_json(self) -> dict[str, Any]:
        """Everything, all rounds included."""
        return {
            **self.task.as_json(),
            "macs": self.task.macs,
            "rounds": len(self.ours.seconds),
            "contenders": [self._contender(one) for one in self.contenders],
            "skipped": [asdict(each) for each in self.skipped],
            "layers": self.layers,
        }

    def _contender(self, one: Measured) -> dict[str, Any]:
        return {
            **asdict(one),
            "median_seconds": median(one.seconds),
            "images_per_second": self.images_per_second(one),
            "gflops": self.gflops(one),
            "ratio": asdict(self.ratio(one)),
            "cpu_ratio": asdict(self.cpu_ratio(one)),
        }
