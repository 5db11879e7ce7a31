"""What outputs hold beside factors and constants of their channels: weighted projections."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import Sample, sums_by_image
from repvgg_ref.oracle.arithmetic.single import Along

_ROUNDED = 2.0**-20  # what float32 sums of products may be off by


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

    @property
    def freedom(self) -> Array:
        """Of each channel, how many more outputs there are than a plane has parameters, (O,)."""
        on = (self.weights > 0).astype(float)
        slopes = (self.by_slope(on) > 0).sum(axis=1)
        return np.asarray(on.sum(axis=1) - slopes - 1)

    def by_slope(self, values: Array) -> Array:
        """Sums (O, S) of values (O, P)."""
        if self.slopes == 1:
            return np.asarray(values.sum(axis=1, keepdims=True))
        return sums_by_image(self.slopes_of, values, self.slopes)

    def met_without_plane(self, weighted: Array, there: Array, level: Array, slope: Array) -> Array:
        """`Sample.met` of a part less ``w (level + slope y)`` of the whole, (O,).

        What is next to nothing beside the part counts as what rounding makes of it. y is taken
        from its mean: beside a large one, level and slope y are large and cancel.
        """
        if self.slopes > 1:
            left = -self.weights * (level[:, None] + slope[:, self.slopes_of] * self.sample.y)
            left[:, there] += weighted
            return self.sample.met(left)
        slope = slope[:, 0]
        part = self.sample.along(weighted, there)
        own = part.dot(part)
        one, y = (part.dot(each) for each in self.along_plane)
        ones, both, centred = self.met_by_plane
        level = level + slope * self.mean
        met = own - 2 * (level * one + slope * y)
        met += level**2 * ones + 2 * level * slope * both + slope**2 * centred
        return np.where(np.isnan(met), np.inf, np.maximum(met, _ROUNDED * own))

    @cached_property
    def along_plane(self) -> tuple[Along, Along]:
        """Of 1 and of y from its mean, weighted."""
        centred = self.weights * (self.sample.y - self.mean[:, None])
        return self.sample.along(self.weights), self.sample.along(centred)

    @cached_property
    def met_by_plane(self) -> tuple[Array, Array, Array]:
        """Of 1, of both, of y from its mean, (O,) each."""
        one, y = self.along_plane
        return one.dot(one), one.dot(y), y.dot(y)

    @cached_property
    def mean(self) -> Array:
        """Of the outputs of each channel, weighted; 0 where none counts."""
        one, sy = (moment.sum(axis=1) for moment in self._moments[:2])
        return np.asarray(np.where(one > 0, sy / np.where(one > 0, one, 1.0), 0.0))
