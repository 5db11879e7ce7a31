"""A network quantised in one way after the other, on images that its ranges were not taken from.

What a way gains is counted on the same images, right against wrong, so its interval needs no model
of the noise. Smoother estimates from the logits' margins were measured: with the noise of other
images they miss most of a loss, since noise depends on the image; with that of images of the same
class they vary less, but are a sixth too low or more where a loss is a few points
(``tests/studies/integer/margins_study.py``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.observers import Range
from repvgg_ref.integer.simulate import simulated_logits, sqnr
from repvgg_ref.models.network import Model
from repvgg_ref.models.rates import paired_interval, wilson_interval


class Gain(NamedTuple):
    """By how much a rate changes, as a part of 1, and where the truth lies at 95 %."""

    by: float
    low: float
    high: float

    def __str__(self) -> str:
        """In points, with the interval."""
        return f"{100 * self.by:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f}) points"


@dataclass(frozen=True)
class Simulation:
    """A whole network quantised in one way.

    Attributes
    ----------
    sqnr : float
        dB at the logits.
    same, right : (N,) bool arrays
        Whether an image gets the float network's class, and its own; `right` is None where the
        images have no labels.
    """

    name: str
    sqnr: float
    same: Array = field(repr=False, compare=False)
    right: Array | None = field(repr=False, compare=False)

    @property
    def same_class(self) -> float:
        """The share of images that keep the float network's class."""
        return float(self.same.mean())

    @property
    def top1(self) -> float | None:
        """The share of images that get their own class."""
        return None if self.right is None else float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Where top-1, or without labels the share of the same class, lies for images like these.

        At 95 %; Wilson's.
        """
        return wilson_interval(int(self._counted.sum()), len(self._counted))

    def gain_over(self, before: Simulation) -> Gain:
        """What this way gains in top-1, or without labels in images of the same class."""
        ours, theirs = self._counted, before._counted
        gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        interval = paired_interval(gained, lost, len(ours))
        return Gain((gained - lost) / len(ours), *interval)

    def to_json(self, naive: Simulation) -> dict[str, Any]:
        """One of `simulated` in what ``repvgg-ref advise --json`` prints."""
        gain = None if self is naive else self.gain_over(naive)
        return {
            "sqnr": float(self.sqnr) if np.isfinite(self.sqnr) else None,
            "same_class": self.same_class,
            "top1": self.top1,
            "interval": list(self.interval),
            "gain": None if gain is None else {"by": gain.by, "interval": list(gain[1:])},
        }

    @property
    def _counted(self) -> Array:
        return self.same if self.right is None else self.right


@dataclass
class Trial:
    """A network in deploy form, the ranges of its activations, and images.

    `labels` may be None; `given` are logits to come near in place of the network's own.
    """

    deploy: Model
    ranges: dict[str, Range]
    images: Array
    labels: Array | None = None
    given: Array | None = None

    @cached_property
    def wanted(self) -> Array:
        """The logits (N, classes) to come near."""
        return self.run([], per_tensor=False) if self.given is None else self.given

    def run(self, quantised: Collection[str], *, per_tensor: bool) -> Array:
        """Logits (N, classes) with these layers in integers."""
        return simulated_logits(
            self.deploy, self.ranges, self.images, set(quantised), per_tensor=per_tensor
        )

    def loss(self, quantised: Collection[str], *, per_tensor: bool) -> float:
        """Signal over noise at the logits in dB; infinite if nothing is lost."""
        return sqnr(self.wanted, self.run(quantised, per_tensor=per_tensor))

    def judged(self, name: str, quantised: Collection[str], *, per_tensor: bool) -> Simulation:
        """The way called `name`, which quantises these layers."""
        logits = self.run(quantised, per_tensor=per_tensor)
        found = logits.argmax(1)
        right = None if self.labels is None else found == self.labels
        return Simulation(name, sqnr(self.wanted, logits), found == self.wanted.argmax(1), right)
