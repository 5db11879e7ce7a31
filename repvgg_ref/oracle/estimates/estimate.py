"""One number estimated of a layer, its standard error, and what a right layer may show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array

# Chance of accusing a right port, nominal, over all tests of a verification.
FALSE_ALARM = 1e-6

# Rounding errors are no Gaussians: those of long chains have kurtosis 4 to 7, and single outputs of
# right ports reach 13 standard errors (tests/studies/NOTES-oracle.md). A statistic counts as this
# many times fewer standard errors, the fewer numbers it is a mean of the more so.
_STEPS, _LARGEST = 50, 50.0  # of a search for a logarithm, and its end
_SIZES = ("taps", "noise")  # squares: too small is no alarm
_SOME_TESTS, _MANY_TESTS = 200, 1_000_000  # as of a small port, and as of any
_MOST = 0.75  # of the channels see what a typical one is said to
LARGEST_CLAIM = 1e-2  # relative: faults beyond are no small ones

TAILS = {"layer": 1.0, "channel": 1.15, "tap": 1.4, "output": 3.5}


class Claim(NamedTuple):
    """How a fault would show in a test; all numbers, or arrays (O,) with a fault for each channel.

    Attributes
    ----------
    error : float or array
        The standard error that the test would have.
    shown : float or array
        The part of a fault that the value holds: the rest passes for something else.
    growth : float or array
        Standard error that a fault adds, relative to its size: it is taken for noise, in part.
    size : float or array
        What the value is relative to, over what a fault is told in.
    """

    error: Any
    shown: Any = 1.0
    growth: Any = 0.0
    size: Any = 1.0

    def smallest(self, needed: float, tolerance: float) -> Array:
        """The v with ``shown v - tolerance = needed hypot(error, growth v)``, told in faults."""
        error, shown, growth, size = np.broadcast_arrays(*self)
        grown = needed * growth
        left = shown**2 - grown**2
        able = shown > grown
        root = np.hypot(needed * error * np.sqrt(np.maximum(left, 0)), grown * tolerance)
        found = (shown * tolerance + root) / np.where(able, left, 1.0)
        return np.asarray(np.where(able, found, np.inf) * size)

    def of_size(self, size: float, needed: float, tolerance: float) -> Claim:
        """One that shows faults of `size` and more, among so many tests; of the same part."""
        error = (float(self.shown) * size / float(self.size) - tolerance) / needed
        return Claim(error, self.shown, 0.0, self.size)

    def each(self, chosen: Array) -> Claim:
        """The claims of the chosen channels, arrays all."""
        return Claim(*(each[chosen] for each in np.broadcast_arrays(*self, chosen)[:-1]))

    def typical(self, scope: str, tolerance: float, tests: int, ways: int = 1) -> Claim:
        """Of one channel: three in four of all show such a fault when it does, or before.

        Faults may show in several `ways`: then arrays hold all channels so many times.
        """
        sizes = self.smallest(_needed(max(tests, _SOME_TESTS)) * TAILS[scope], tolerance)
        sizes = sizes.reshape(ways, -1)
        best = sizes.min(axis=0)
        at = np.argsort(best, kind="stable")[math.ceil(_MOST * (len(best) - 1))]
        place = int(sizes[:, at].argmin()) * len(best) + int(at)
        return Claim(*(float(each[place]) for each in np.broadcast_arrays(*self)))


@dataclass(frozen=True)
class Estimate:
    """What one test found.

    Attributes
    ----------
    kind : str
        What was estimated: "scale", "bias", "taps", "tap", "contrast", "noise", "output".
    where : str
        "" for the layer as a whole, else "channel 3", "last column", "image 1".
    value : float
        Relative to the layer's right value: outputs are ``1 + value`` times as large.
    error : float
        Standard error of `value`, conversion of the weights included.
    tolerance : float
        What a right layer may show without any noise.
    scope : str
        A key of `TAILS`.
    count : int
        How many such tests were made; this one shows most.
    typical : float
        Of "taps" the standard error that a fault adds, relative to its value.
    claim : Claim or None
        How a fault would show, of several tests in three of four at least; None: with `error`.
    """

    kind: str
    where: str
    value: float
    error: float
    tolerance: float
    scope: str
    count: int = 1
    typical: float = 0.0
    claim: Claim | None = None

    @property
    def deviation(self) -> float:
        """By how many standard errors the value is beyond the tolerance, tails allowed for."""
        if self.kind == "taps":
            # The error grows with the value: their ratio stays, and says how many channels agree.
            ratio = self.value / max(self.tolerance, 1e-300)
            beyond = self.value * float(np.log(ratio)) if ratio > 1 else 0.0
        else:
            size = self.value if self.kind in _SIZES else abs(self.value)
            beyond = max(0.0, size - self.tolerance)
        return beyond / max(self.error, 1e-300) / TAILS[self.scope]

    @property
    def p_value(self) -> float:
        """Of the largest of `count` such deviations being rounding; at most 1."""
        single = math.erfc(self.deviation / math.sqrt(2))
        return min(1.0, self.count * single)

    @property
    def sensitivity(self) -> str:
        """What it says the smallest visible error of; empty for none."""
        if self.where == "channels":
            return ""
        names = {"contrast": "part", "taps": "taps", "tap": "tap"}
        if self.scope == "channel":
            return "channel" if self.kind == "scale" else "channel bias"
        return names.get(self.kind, self.kind if self.kind in ("scale", "bias") else "")

    @property
    def says(self) -> str:
        """The finding in words."""
        where = f" of {self.where}" if self.where else ""
        sure = f"{self.deviation:.0f} standard errors beyond rounding"
        if self.kind == "noise":
            return f"its errors are {self.value**0.5:.3g} times those of direct sums ({sure})"
        if self.kind == "taps":
            return f"its weights err by {self.value**0.5:.3g} roundings each ({sure})"
        if self.where == "channels":
            return f"its channels differ in {self.kind} ({sure})"
        what = {"scale": "outputs", "bias": "bias", "contrast": "outputs",
                "tap": "weight", "output": "output"}[self.kind]  # fmt: skip
        return f"{what}{where} off by {self.value:+.3g} of the right value ({sure})"

    def smallest(self, tests: int = _MANY_TESTS) -> float:
        """The smallest error that would be an alarm among so many tests; infinite for none."""
        needed = _needed(max(tests, self.count)) * TAILS[self.scope]
        claim = self.claim or Claim(self.error)
        if self.kind == "taps":
            seen = _above(self.tolerance, needed, self.error, self.typical)
            return seen / max(float(claim.shown), 1e-300)
        return float(claim.smallest(needed, self.tolerance))


def needed_for(scope: str) -> float:
    """Standard errors that are an alarm among very many tests."""
    return _needed(_MANY_TESTS) * TAILS[scope]


def _needed(tests: int) -> float:
    """Standard errors that are an alarm among so many tests."""
    return -NormalDist().inv_cdf(FALSE_ALARM / tests / 2)


def told(size: float) -> float | None:
    """A smallest error as reports hold it: None if so large that estimates say nothing of it."""
    return size if size <= LARGEST_CLAIM else None


def alarms(estimates: Iterable[Estimate]) -> list[Estimate]:
    """Estimates that rounding does not explain, by Holm's step-down procedure, surest first.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6
    (1979). Each estimate stands for `count` tests, whose number its p-value allows for already.
    """
    ordered = sorted(estimates, key=lambda e: e.p_value)
    found: list[Estimate] = []
    for at, estimate in enumerate(ordered):
        if estimate.p_value * (len(ordered) - at) > FALSE_ALARM:
            break
        found.append(estimate)
    return found


def _above(tolerance: float, needed: float, error: float, relative: float) -> float:
    """The value v with ``v log(v / tolerance) = needed * hypot(error, relative v)``, by halving."""
    low, high = 0.0, _LARGEST  # logarithms of v / tolerance
    for _ in range(_STEPS):
        middle = (low + high) / 2
        value = tolerance * math.exp(middle)
        if value * middle > needed * math.hypot(error, relative * value):
            high = middle
        else:
            low = middle
    return tolerance * math.exp(high)


def wilson_hilferty(chi_square: float, freedom: float) -> float:
    """A chi-square as standard deviations of a Gaussian (Wilson & Hilferty 1931)."""
    if freedom <= 0:
        return 0.0
    part = 2 / (9 * freedom)
    return float((np.cbrt(chi_square / freedom) - (1 - part)) / np.sqrt(part))
