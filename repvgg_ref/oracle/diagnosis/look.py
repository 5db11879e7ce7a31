"""One batch of images, what a candidate gave for it, and what known bugs would have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs.base import Mutant
from repvgg_ref.oracle.diagnosis.alternatives import Alternative, Chain, exact
from repvgg_ref.oracle.diagnosis.logit_noise import PEAK, LogitNoise, logit_noise
from repvgg_ref.oracle.diagnosis.ranking import FALSE_ALARM
from repvgg_ref.oracle.diagnosis.regression import Fit
from repvgg_ref.oracle.power import Place

_LEFT = 0.2  # of a bug's effect, where it is named: the rest is rounding
_FLOOR = 0.05  # kappa of a port that rounds hardly at all
_TWICE = 2.0  # a bug is excluded where its effect is this many times what was measured, at least


@dataclass(frozen=True)
class Match:
    """How well a mutant's logits are the candidate's.

    Attributes
    ----------
    size, left : float
        Root mean square of its effect, and of what remains of the residual, in deviations.
    chance : float
        Of rounding alone leaving so little of it.
    """

    mutant: Mutant[Any]
    change: Array
    size: float
    left: float
    coefficient: float
    energy: float
    chance: float

    @property
    def fit(self) -> Fit:
        """As a regression, for the ranking."""
        explains = 1 - (self.left / self.energy) ** 2 if self.energy > 0 else 0.0
        error = self.left / self.size if self.size > 0 else np.inf
        return Fit(self.coefficient, error, self.chance, explains, self.left)


@dataclass(frozen=True)
class Look:
    """The right logits, the candidate's, and how rounding scatters them.

    Attributes
    ----------
    residual : (N, classes) array
        Candidate minus reference.
    """

    chain: Chain
    noise: LogitNoise
    residual: Array

    @classmethod
    def at(cls, chain: Chain, y_hat: Array, precision: Precision) -> Look:
        """Estimate the noise, and compare."""
        return cls(chain, logit_noise(chain, precision), y_hat - chain.logits)

    @property
    def kappa(self) -> float:
        """How large the candidate's error is, in deviations of unit rounding."""
        return max(self.noise.kappa(self.residual), self.noise.peak(self.residual))

    @property
    def kappa_per_logit(self) -> Array:
        """The error of each logit that makes `kappa` 1 by itself."""
        return PEAK * self.noise.deviation

    @property
    def is_right(self) -> bool:
        """Whether rounding explains what is seen."""
        return self.kappa <= self.noise.allowed

    def matches(self, found: Sequence[Alternative]) -> list[Match]:
        """All mutants held against the candidate."""
        r = self.noise.of(self.residual)
        energy, count = float(r @ r), r.size
        made = []
        for each in found:
            w = self.noise.of(each.change)
            cross, power = float(r @ w), float(w @ w)
            left = float(np.sqrt(max(float((r - w) @ (r - w)), 0.0) / count))
            size = float(np.sqrt(power / count))
            chance = self.noise.chance(left / size) if size > 0 else 1.0
            coefficient = cross / power if power > 0 else 0.0
            rms = float(np.sqrt(energy / count))
            made.append(Match(each.mutant, each.change, size, left, coefficient, rms, chance))
        return made

    def sharpened(self, match: Match) -> Match:
        """The same in float64."""
        change = exact(self.chain, match.mutant)
        return match if change is None else self.matches([Alternative(match.mutant, change)])[0]

    def reproduces(self, match: Match) -> bool:
        """Whether only rounding is left, and little beside what the bug does."""
        y = self.chain.logits
        spread = float(np.abs(y).max())
        more = float(np.abs(y + match.change).max()) / spread if spread > 0 else 1.0
        return match.left <= min(self.noise.allowed * (1 + more), _LEFT * match.size)

    def smallest(self, found: Sequence[Alternative]) -> dict[Place, float]:
        """Place -> the part of the bug's effect that would have shown; above 1 it can hide.

        Were the bug there, rounding would have had to cancel it down to what was measured. In
        `freedom` dimensions that has the probability `LogitNoise.chance`.
        """
        measured = max(self.noise.kappa(self.residual), _FLOOR)
        needed = measured * max(_TWICE, 1 / self.noise.ratio(FALSE_ALARM))
        return {m.place: needed / max(self.noise.kappa(m.change), 1e-300) for m in found}

    def smallest_errors(self) -> dict[str, float]:
        """Layer -> the relative error, at random in every channel, that is beyond rounding."""
        chain, tiny = self.chain, np.float32(1e-4)
        rng = np.random.default_rng(1)
        found = {}
        for name in chain.blocks:
            y = chain.differences.blocks[name].after
            factors = tiny * rng.standard_normal((4, 1, 1, 1, y.shape[-1]), np.float32)
            error = (factors * y).reshape(-1, *y.shape[1:])
            change = chain.differences.to_logits(name, error).reshape(4, *chain.logits.shape)
            size = min(self.noise.kappa(each) for each in change)
            found[name] = float(tiny * 2 * self.noise.allowed / max(size, 1e-300))
        return found
