"""Taps of a layer that are wrong: all of them by a little each, or single ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.planes import Planes
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.arithmetic.single import Along
from repvgg_ref.oracle.estimates.estimate import TAILS, Claim, Estimate
from repvgg_ref.oracle.estimates.regression import TapRegression, capped_mean

FEW = 8  # active outputs that a channel needs to be judged alone
_MANY = 24  # and to take part in the noise of taps
_DRAWS = 2
_NEAR_ZERO = 1e-3
_ONE_TAP = 2**0.5  # relative standard deviation of a channel's tau**2 if one tap is all
_TOLD_TAP = 0.01  # of a tap's power: what has to be left of it beside a plane
# The noise that is fitted grows with a fault, and so does what conversion makes, since weights move
# to smaller outputs.
_UNEVENLY = 1.5


class TapTests(Planes):
    """The estimates of one layer's taps, and what they share with others.

    `residual` (O, P) is candidate minus reference, less what is known of right layers.
    """

    def __init__(self, sample: Sample, nuisance: Nuisance, weights: Array, seed: int) -> None:
        super().__init__(sample, weights)
        self.nuisance = nuisance
        self.count = sample.active.sum(axis=1)
        self.residual = sample.residual - nuisance.drift
        self._rng = np.random.default_rng(seed)

    @property
    def factors(self) -> tuple[Array, Array]:
        """Of every channel its factor and the standard error, infinite where nothing tells it."""
        raise NotImplementedError

    def growth(self, part: Any = 1.0) -> Any:
        """What a fault adds to its standard error, of itself, if `part` of its square is seen."""
        return _UNEVENLY * np.sqrt(part / max(self.sample.active.sum(), 1))

    def tap_noise(self) -> Iterator[Estimate]:
        """Whether all taps are wrong, by a little each: tau**2 against its tolerance.

        ``T = sum_k (M_k g_k)**2`` with ``g = sum_p w r x`` is expected to be ``sum_p (w r E)**2``
        if only rounding is at work, and more by ``tau**2 H`` if taps are wrong by tau u M_k: H is
        measured on random errors.
        """
        sample, n = self.sample, self.nuisance
        chosen = self.count >= _MANY
        if not chosen.any():
            return
        weighted = self.weights * self.perpendicular
        taps, size = self._along_residual
        residual = Along(*sample.single.weighed(taps.copy(), size), sample.by_branches(weighted))
        observed = residual.dot(residual)
        null = self._by_chance(weighted)
        moves = [
            self.weights * self.without_plane(sample.jolted(self._rng)) * n.unit
            for _ in range(_DRAWS)
        ]
        drawn = [sample.met(moved) for moved in moves]
        response = np.maximum(np.mean(drawn, axis=0), 1e-300)
        precision = np.minimum(response / np.maximum(null, 1e-200), 1e6)[chosen]
        value, error = capped_mean(((observed - null) / response)[chosen], precision)
        shows = []  # what is estimated of errors that rounding is nothing beside
        for t, moved in zip(drawn, moves, strict=True):
            by_chance = self._by_chance(moved)
            sure = _NEAR_ZERO * response / np.maximum(by_chance, 1e-200)
            shows.append(capped_mean(((t - by_chance) / response)[chosen], sure[chosen]))
        shown = max(float(np.mean([mean for mean, _ in shows])), 1e-3)
        # One draw from the mean of all, which it is part of.
        spread = float(np.sqrt(_DRAWS) * np.mean([left for _, left in shows])) / shown
        spread = max(spread, _ONE_TAP / float(np.sqrt(chosen.sum())))
        claim = Claim(error, min(shown, 1.0))
        yield Estimate("taps", "", value, error, n.taps, "tap", typical=spread, claim=claim)

    def _by_chance(self, weighted: Array) -> Array:
        """What T is of errors that are independent, in single outputs or in tiles."""
        sample, tiles = self.sample, self.nuisance.tiles
        if tiles is None:
            energy = sample.energy - sample.bias_magnitude[:, None] ** 2
            return np.asarray((weighted**2 * energy).sum(axis=1))
        draws = []
        for _ in range(_DRAWS):
            signs = self._rng.choice((-1.0, 1.0), int(tiles.max()) + 1)[tiles]
            draws.append(sample.met(weighted * signs))
        return np.asarray(np.mean(draws, axis=0))

    def single_taps(self) -> Iterator[Estimate]:
        """The largest error of one tap, relative to its magnitude."""
        score, usable = self._scores()
        at = score.argmax(axis=1)
        channels = np.arange(len(at))
        suspects = self._taps(at)
        # The larger of what rounding and what is there makes of the score.
        worst = score[channels, at]
        cross = np.abs(suspects.cross)
        scatter = np.where(worst > 0, (cross / np.where(worst > 0, worst, 1.0)) ** 2, 0.0)
        enough = suspects.told & usable[channels, at]
        if not enough.any():
            return
        chosen = np.flatnonzero(enough)
        values, errors = (each[chosen] for each in suspects.estimated(scatter, self._least_of_tap))
        worst_of = int(np.argmax(np.abs(values) / errors))
        o = chosen[worst_of]
        name = f"channel {o}, tap {at[o]}"
        yield Estimate("tap", name, float(values[worst_of]), float(errors[worst_of]), 0.0, "tap",
                       int(usable.sum()), claim=self._claim_of_taps(usable))  # fmt: skip

    def _claim_of_taps(self, usable: Array) -> Claim:
        """How a fault in the largest weight of a channel would show: alone, or in its outputs."""
        sample = self.sample
        channels = np.arange(len(sample.y))
        largest = np.abs(sample.weight).argmax(axis=1)
        found = self._taps(largest)
        judged = found.told & usable[channels, largest]
        if not judged.any():
            return Claim(np.inf)
        errors = found.estimated(np.zeros(len(largest)), self._least_of_tap)[1]
        weight = np.abs(sample.weight[channels, largest])
        size = sample.magnitude[channels, largest] / np.maximum(weight, 1e-300)
        alone = Claim(errors, 1.0, self.nuisance.clustering * found.growth, size)
        both = zip(alone.each(judged), self._in_outputs(largest).each(judged), strict=True)
        claims = Claim(*(np.concatenate(each) for each in both))
        return claims.typical("tap", 0.0, int(usable.sum()), ways=2)

    def _in_outputs(self, at: Array) -> Claim:
        """How faults of taps `at` (O,) would show as a factor of their channels' outputs."""
        sample, channels = self.sample, np.arange(len(at))
        moved = sample.columns[channels // (len(at) // sample.groups), at]
        moved = moved * sample.weight[channels, at][:, None]
        power = np.maximum(self.power(sample.y), 1e-300)
        part = np.abs((self.weights * sample.y * moved).sum(axis=1)) / power
        errors = self.factors[1] * TAILS["channel"] / TAILS["tap"]
        errors = errors + self.nuisance.allowed_drift * self.nuisance.unit
        return Claim(errors, part, self.growth(self.power(moved) / power))

    @property
    def _least_of_tap(self) -> float:
        return 2 * self.nuisance.unit

    def _taps(self, at: Array) -> TapRegression:
        """The regressions on one tap of every channel, `at` (O,)."""
        sample = self.sample
        channels = np.arange(len(at))
        met = sample.columns[channels // (len(at) // sample.groups), at]  # (O, P)
        beside = self.without_plane(met)
        own = self.weights * beside
        power = (own * met).sum(axis=1)
        plain = np.einsum("op,op,op->o", self.weights, met, met)
        seen = sample.along(own)
        seen.taps[channels, at] = 0
        several = ((met != 0) & (self.weights > 0)).sum(axis=1) >= FEW
        told = (power > _TOLD_TAP * plain) & several
        size = np.where(told, power * sample.magnitude[channels, at], np.inf)
        # What the score scatters by where the tap is off: its own part of the residual, by outputs.
        grown = np.sqrt(np.square(own * met).sum(axis=1)) / np.where(told, power, np.inf)
        return TapRegression(
            np.einsum("op,op->o", self.weights * self.perpendicular, met),
            np.maximum(power, plain),
            self._conversion * seen.dot(seen),
            size,
            told,
            grown,
        )

    def _scores(self) -> tuple[Array, Array]:
        """How far every tap seems to be off, in standard errors, and which can be judged, (O, K).

        The scores of others are 0. Inputs of a tap are in units of their largest throughout.
        """
        sample, (found, size) = self.sample, self._along_residual
        plain, of_plain = sample.single.of_squares(self.weights)
        weighted = self.weights * self.perpendicular
        sandwich, of_sandwich = sample.single.of_squares(np.square(weighted, out=weighted))
        plain *= (of_plain / size**2).astype(np.float32)
        sandwich *= (of_sandwich * (self.nuisance.clustering / size) ** 2).astype(np.float32)
        spread = np.maximum(plain, sandwich, out=plain)
        usable = (self.count >= FEW)[:, None] & (spread > 0) & (sample.magnitude > 0)
        score = np.abs(found, out=sandwich)
        np.divide(score, np.sqrt(spread, out=spread), out=score, where=usable)
        score[~usable] = 0
        return score, usable

    @property
    def _conversion(self) -> float:
        return self.nuisance.taps * self.nuisance.unit**2

    @cached_property
    def _along_residual(self) -> tuple[Array, Array]:
        """Of what a plane leaves of the residual, weighted: see `Single.along`."""
        return self.sample.single.along(self.weights * self.perpendicular)

    @cached_property
    def perpendicular(self) -> Array:
        """The residual without what a scale and a bias of each channel explain."""
        return self.without_plane(self.residual)
