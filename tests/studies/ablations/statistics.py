"""Differences of pairs of runs that share a seed, with intervals of Student's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and the interval that holds the true one with 95 % confidence.

    `strict` is the interval that holds with the same confidence for all comparisons of a table at
    once (Bonferroni). Of a single pair both are without end.
    """

    mean: float
    low: float
    high: float
    strict_low: float
    strict_high: float
    pairs: int

    @property
    def differs(self) -> bool:
        """Whether zero is outside."""
        return self.low > 0 or self.high < 0

    @property
    def differs_strictly(self) -> bool:
        """Whether zero is outside, were this one of many comparisons."""
        return self.strict_low > 0 or self.strict_high < 0

    def to_json(self) -> dict[str, Any]:
        """Rounded; no end is null."""
        found = {k: round(v, 4) if math.isfinite(v) else None for k, v in self._asdict().items()}
        return found | {"differs": self.differs, "differs_strictly": self.differs_strictly}


def paired(
    first: Mapping[int, float], second: Mapping[int, float], *, comparisons: int
) -> Interval:
    """The mean of ``first - second`` over the seeds that both have.

    Parameters
    ----------
    first, second : mapping
        Seed -> value.
    comparisons : int
        How many such differences are looked at together.

    Raises
    ------
    ValueError
        If they have no seed in common.
    """
    seeds = sorted(first.keys() & second.keys())
    return interval([first[s] - second[s] for s in seeds], comparisons=comparisons)


def interval(values: Sequence[float], *, comparisons: int = 1) -> Interval:
    """Of the mean of independent values, normally distributed."""
    if not values:
        raise ValueError("no value to take the mean of")
    mean, pairs, missed = float(np.mean(values)), len(values), 1 - CONFIDENCE
    if pairs == 1:
        return Interval(mean, -math.inf, math.inf, -math.inf, math.inf, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(pairs)
    wide = student(1 - missed / 2, pairs - 1) * error
    strict = student(1 - missed / comparisons / 2, pairs - 1) * error
    return Interval(mean, mean - wide, mean + wide, mean - strict, mean + strict, pairs)


def student(probability: float, freedom: int) -> float:
    """The quantile above the median of Student's t, by halving; good to 1e-9 of itself.

    Its distribution for whole degrees of freedom n is a finite sum: Abramowitz and Stegun, 26.7.3
    and 26.7.4, in theta = atan(t / sqrt(n)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        inside = _within(middle, freedom)
        low, high = (middle, high) if (1 + inside) / 2 < probability else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(theta: float, freedom: int) -> float:
    """The probability that ``|t| < tan(theta) sqrt(freedom)``."""
    odd = freedom % 2
    term, total = (math.cos(theta) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(theta) ** 2 * k / (k + 1)
    total *= math.sin(theta)
    return (theta + total) * 2 / math.pi if odd else total


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau of two lists: pairs in the same order less pairs in the other, as a part."""
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    same = sum(np.sign(first[i] - first[j]) * np.sign(second[i] - second[j]) for i, j in pairs)
    return float(same) / len(pairs)
