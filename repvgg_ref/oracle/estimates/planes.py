"""What outputs hold beside factors and constants of their channels: weighted projections."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample, sums_by_image


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


class Planes:
    """Projections of values (O, P) at a sample's outputs, with weights (O, P).

    A channel has one slope, or behind a gate one for each image: gates err by image.
    """

    def __init__(self, sample: Sample, weights: Array) -> None:
        self.sample, self.weights = sample, weights

    def power(self, values: Array) -> Array:
        """``sum w v**2`` of each channel, (O,)."""
        return np.asarray(np.einsum("op,op,op->o", self.weights, values, values))

    def without_scales(self, values: Array) -> Array:
        """`values` (O, P) less what a scale of each channel explains; of each image, if gated."""
        found = self.weights * self.sample.y
        power, cross = (self.by_slope(found * v) for v in (self.sample.y, values))
        share = cross / np.where(power > 0, power, np.inf)
        return np.asarray(values - share[:, self.slopes_of] * self.sample.y)

    def without_scale(self, values: Array) -> Array:
        """`values` (O, P) less what one scale of the whole layer explains."""
        y = self.sample.y
        share = float((self.weights * y * values).sum())
        share /= max(float((self.weights * y * y).sum()), 1e-300)
        return np.asarray(values - share * y)

    def without_plane(self, values: Array) -> Array:
        """`values` (O, P) less their weighted regression on 1 and y, channel by channel.

        A channel behind a gate has a slope for each image.
        """
        weighted, y = self.weights * values, self.sample.y
        level, slope = self.plane(self.by_slope(weighted), self.by_slope(weighted * y))
        left = values - level[:, None] - slope[:, self.slopes_of] * y
        return np.where(self.sample.active, left, 0.0)

    def plane(self, first: Array, second: Array) -> tuple[Array, Array]:
        """Level (O,) and slopes (O, S) of a weighted regression on 1 and y.

        `first` and `second` (O, S) are the sums of ``w v`` and ``w v y`` of what is regressed, v.
        """
        one, sy, yy = self._moments
        yy = np.where(yy > 0, yy, np.inf)
        level_alone = one.sum(axis=1)
        left = level_alone - (sy**2 / yy).sum(axis=1)
        good = left > 1e-9 * level_alone
        level = (first - second * sy / yy).sum(axis=1) / np.where(good, left, np.inf)
        return level, (second - level[:, None] * sy) / yy

    @cached_property
    def _moments(self) -> tuple[Array, Array, Array]:
        """Of every slope: the sums of w, w y and w y**2."""
        w, y = self.weights, self.sample.y
        return self.by_slope(w), self.by_slope(w * y), self.by_slope(w * y * y)

    @cached_property
    def slopes_of(self) -> Array:
        """Which slope of its channel each output has, (P,): its image's, if gated."""
        return self.sample.images if self.sample.gated else 0 * self.sample.images

    @property
    def slopes(self) -> int:
        """How many slopes a channel has."""
        return int(self.slopes_of.max()) + 1

    def by_slope(self, values: Array) -> Array:
        """Sums (O, S) of values (O, P)."""
        if self.slopes == 1:
            return np.asarray(values.sum(axis=1, keepdims=True))
        return sums_by_image(self.slopes_of, values, self.slopes)
