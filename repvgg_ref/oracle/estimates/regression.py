"""What regressions on a layer's channels find, pooled and single."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample

_ROUNDINGS = 64.0  # of a channel's mean: what varies less is lost in them


class Regression(NamedTuple):
    """Of every channel: ``sum w r D``, ``sum w D**2``, and what conversion adds to its variance."""

    cross: Array
    power: Array
    conversion: Array

    def pooled(self) -> tuple[float, float]:
        """Coefficient and standard error of all channels together."""
        power = max(float(self.power.sum()), 1e-300)
        spread = float((self.power + self.conversion).sum())
        return float(self.cross.sum()) / power, float(np.sqrt(spread)) / power

    def single(self) -> tuple[Array, Array]:
        """Coefficients and standard errors of each channel; 0 and infinity where there is none."""
        power = np.where(self.power > 0, self.power, np.inf)
        error = np.sqrt(self.power + self.conversion) / power
        return self.cross / power, np.where(self.power > 0, error, np.inf)


class TapRegression(NamedTuple):
    """One tap of every channel, (O,) each.

    Attributes
    ----------
    cross : array
        ``sum w r x``, r beside scale and bias.
    scatter : array
        What rounding makes of its square.
    conversion : array
        What errors of the other taps add to that.
    size : array
        What `cross` is of a tap that is off by its magnitude; infinite where nothing tells it.
    told : array of bool
    growth : array
        Standard error that a fault of the tap adds, relative to the fault.
    """

    cross: Array
    scatter: Array
    conversion: Array
    size: Array
    told: Array
    growth: Array

    def estimated(self, scatter: Array, least: float) -> tuple[Array, Array]:
        """Values and standard errors; `scatter` is what it is seen to be, if that is more."""
        spread = np.maximum(self.scatter, scatter) + self.conversion
        return self.cross / self.size, np.hypot(np.sqrt(spread) / self.size, least)


def vary_by_roundings(sample: Sample, unit: float) -> Array:
    """Channels whose outputs differ by few roundings, (O,).

    Where a bias is all, its rounding follows the products: errors are no noise, and say nothing of
    the weights that they come from.
    """
    count = np.maximum(sample.active.sum(axis=1), 1)
    y = np.where(sample.active, sample.y, 0.0)
    mean = y.sum(axis=1) / count
    spread = np.sqrt((np.where(sample.active, y - mean[:, None], 0.0) ** 2).sum(axis=1) / count)
    several = sample.active.sum(axis=1) > 1
    return np.asarray(several & (spread < _ROUNDINGS * unit * np.abs(mean)))


def capped_mean(values: Array, precision: Array) -> tuple[float, float]:
    """Weighted mean over channels, no channel with more weight than four medians, and its error."""
    weight = precision**2 / (1 + precision**2)
    weight = np.minimum(weight, 4 * max(float(np.median(weight)), 1e-300))
    total = float(weight.sum())
    mean = float((weight * values).sum()) / max(total, 1e-300)
    spread = float((weight**2 * (values - mean) ** 2).sum())
    count = len(values)
    if count < 3:
        return mean, abs(mean) + 1.0
    return mean, float(np.sqrt(spread * count / (count - 1))) / max(total, 1e-300)
