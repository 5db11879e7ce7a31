"""Scale, bias, taps, single taps, contrasts and noise of one layer, each with its standard error.

All are weighted regressions of the residual r on a direction D of the layer's outputs, weights
``w = active / variance``:

    coefficient = sum w r D / sum w D**2

whose variance is rounding's, ``1 / sum w D**2``, and the conversion's: each tap is wrong by
``tau u M_k`` for all outputs alike, which adds ``(tau u)**2 sum_k (M_k sum w D x_k)**2 /
(sum w D**2)**2``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample, sums_by_image
from repvgg_ref.oracle.arithmetic.single import Along
from repvgg_ref.oracle.estimates.estimate import Estimate, wilson_hilferty
from repvgg_ref.oracle.estimates.gated import GatedFactors
from repvgg_ref.oracle.estimates.planes import Planes
from repvgg_ref.oracle.estimates.regression import Regression, capped_mean, vary_by_roundings

_FEW = 8  # active outputs that a channel needs to be judged alone
_MANY = 24  # and to take part in the noise of taps
_DRAWS = 2
_NEAR_ZERO = 1e-3
_ONE_TAP = 2**0.5  # relative standard deviation of a channel's tau**2 if one tap is all
_MOST, _MOST_TAPS = 0.75, 0.9  # of the channels see what a typical one is said to
# A fault near the smallest that is seen is so large, in u: the noise that is fitted grows with it.
_ABOUT = 8.0
_UNEVENLY = 1.5  # and with it what conversion makes, since weights move to smaller outputs
_SPREAD = 1 / 0.6745  # a Gaussian's standard deviation, of its median absolute value
_SURE = 0.1  # of a level: six times its limit is an alarm however few outputs there are
_FEWEST = 64  # outputs that tell tails
_OF_ITSELF = 1e-9  # of a part's energy: what is left of it beside a plane, or it is no part
# Medians over a port's layers are at most 7.6 and 18 in modelled arithmetics (where every addition
# chops 13 and 24) and at least 9 and 25 in Strassen's (tests/studies/NOTES-oracle.md).
_KURTOSIS, _RATIO = 8.0, 22.0
_WHOLE, _CONTRAST = 2.0, 1.0  # u: what a right layer's scale, and part of it, may be off by


class LayerEstimates(Planes):
    """The estimates of one layer; `all` makes them."""

    def __init__(self, sample: Sample, nuisance: Nuisance, seed: int = 0) -> None:
        self.nuisance = nuisance
        weights = np.where(sample.active, 1 / np.maximum(nuisance.variance, 1e-300), 0.0)
        super().__init__(sample, weights / nuisance.clustering**2)
        self.count = sample.active.sum(axis=1)
        blind = vary_by_roundings(sample, nuisance.unit)
        self.weights[blind], self.count[blind] = 0.0, 0
        self.residual = sample.residual - nuisance.drift
        self.gated: GatedFactors | None = None
        if sample.gated:
            self.gated = GatedFactors(sample, nuisance, self.weights, self.residual)
            self.residual = self.residual - self.gated.of_gates.T[:, sample.images] * sample.y
        self._rng = np.random.default_rng(seed)

    @np.errstate(all="ignore")
    def all(self) -> list[Estimate]:
        """Every estimate of this layer."""
        if not self.sample.active.any():
            return []
        return [
            *self._scales(),
            *self._biases(),
            *self._contrasts(),
            *self.tap_noise(),
            *self._single_taps(),
            *self._noise(),
        ]

    def heaviness(self) -> float:
        """How heavy the tails of the errors are: above 1 as in no arithmetic that is modelled.

        Two measures, and the smaller one counts: faults of a few outputs (a column) drive up the
        kurtosis alone, those of many (an image) the ratio of quantiles alone. Sums of large numbers
        that cancel, as Strassen's algorithm has them, do both.
        """
        on = self.sample.active & (self.count >= _FEW)[:, None]
        if on.sum() < _FEWEST:
            return 0.0
        squares = (self.perpendicular**2 / np.maximum(self.nuisance.variance, 1e-300))[on]
        squares /= max(float(squares.max()), 1e-300)  # where nothing should err they are huge
        mean = max(float(squares.mean()), 1e-300)
        middle, high = np.quantile(squares, (0.5, 0.95))
        kurtosis = float((squares**2).mean()) / max(mean**2, 1e-300)
        return min(kurtosis / _KURTOSIS, float(high) / max(float(middle), 1e-9 * mean) / _RATIO)

    def regress(
        self, direction: Array, residual: Array | None = None, met: Array | None = None
    ) -> Regression:
        """Regress the residual on a direction (O, P), channel by channel.

        `met` is what taps make of the weighted direction (`Sample.met`), where it is at hand.
        """
        r = self.residual if residual is None else residual
        weighted = self.weights * direction
        return Regression(
            np.einsum("op,op->o", weighted, r),
            np.einsum("op,op->o", weighted, direction),
            self._conversion * (self.sample.met(weighted) if met is None else met),
        )

    @property
    def _conversion(self) -> float:
        return self.nuisance.taps * self.nuisance.unit**2

    def _scales(self) -> Iterator[Estimate]:
        u = self.nuisance.unit
        tolerance = (_WHOLE + self.nuisance.scale - 1 + self._allowed_drift) * u
        if self.gated is None:
            (ones, both, centred), mean = self.met_by_plane, self.mean
            met = centred + 2 * mean * both + mean**2 * ones
            found = self.regress(self.sample.y, met=met)
            value, error = found.pooled()
            typical = self._error_beside_fault()
            yield Estimate("scale", "", value, error, tolerance, "layer", typical=typical)
            values, errors = found.single()
        else:
            if (whole := self.gated.whole()) is not None:
                value, error, part = whole
                growth = self._growth(1 / part)
                yield Estimate("scale", "", value, error, tolerance, "layer", growth=growth)
            values, errors = self.gated.channels()
        errors = np.hypot(errors, self.nuisance.scale * u)
        yield from self._channels("scale", values, errors, self._allowed_drift * u)

    def _growth(self, part: float = 1.0) -> float:
        """What a fault adds to its standard error, of itself, if `part` of its square is seen."""
        return _UNEVENLY * float(np.sqrt(part / max(self.sample.active.sum(), 1)))

    def _error_beside_fault(self) -> float:
        """The scale's standard error where a fault of it has been taken for noise."""
        y, on = self.sample.y, self.weights > 0
        noise = 1 / np.where(on, self.weights, 1.0) + (_ABOUT * self.nuisance.unit * y) ** 2
        weighted = np.where(on, y / noise, 0.0)
        conversion = self._conversion * self.sample.met(weighted)
        return Regression(y.sum(axis=1), (weighted * y).sum(axis=1), conversion).pooled()[1]

    def _biases(self) -> Iterator[Estimate]:
        u, sample = self.nuisance.unit, self.sample
        tolerance = self._allowed_drift * u
        whole = np.broadcast_to(sample.bias[:, None], sample.y.shape)
        left = self.without_scale if self.gated is None else self.without_scales
        met = self.met_by_plane[0]
        found = self.regress(whole, left(self.residual), met * sample.bias**2)
        value, error = found.pooled()
        shown = float(self.power(left(whole)).sum() / max(self.power(whole).sum(), 1e-300))
        yield Estimate("bias", "", value, error, _WHOLE * u + tolerance, "layer",
                       shown=shown, growth=self._growth(shown))  # fmt: skip
        size = np.maximum(np.abs(sample.bias), sample.bias_magnitude)
        each = np.broadcast_to(size[:, None], sample.y.shape)
        found = self.regress(each, self.without_scales(self.residual), met * size**2)
        values, errors = found.single()
        part = self.power(self.without_scales(each)) / np.maximum(self.power(each), 1e-300)
        yield from self._channels("bias", values, np.hypot(errors, u), tolerance, part)

    def _channels(
        self,
        kind: str,
        values: Array,
        errors: Array,
        tolerance: float,
        part: Array | None = None,
    ) -> Iterator[Estimate]:
        enough = np.flatnonzero((self.count >= _FEW) & np.isfinite(errors))
        if not len(enough):
            return
        beyond = np.maximum(0, np.abs(values) - tolerance)[enough] / errors[enough]
        worst = enough[np.argmax(beyond)]
        # In a long chain the outputs of a channel err alike, in part: all channels scatter more.
        shared = max(1.0, _SPREAD * float(np.median(np.abs(values[enough]) / errors[enough])))
        shown = 1.0 if part is None else -_most(-part[enough])
        yield Estimate(
            kind, f"channel {worst}", float(values[worst]), shared * float(errors[worst]),
            tolerance, "channel", len(enough), shared * _most(errors[enough]),
            shown, self._growth(shown),
        )  # fmt: skip
        deviation = wilson_hilferty(float((np.minimum(beyond, 50) ** 2).sum()), len(enough))
        size = float(np.sqrt((errors[enough] ** 2).mean()))
        yield Estimate(kind, "channels", max(0.0, deviation) * size, size, 0.0, "tap")

    def _contrasts(self) -> Iterator[Estimate]:
        tolerance = _CONTRAST + self._allowed_drift + self.nuisance.scale - 1
        tolerance *= self.nuisance.unit
        if self.count.max() < _FEW:
            return
        for name, there in self.places():
            if self.gated is not None and name.startswith("image "):
                found = self.gated.image(int(name.split()[1]))
                if found is None:
                    continue
                value, error, part = found
            else:
                value, error, part = *self._contrast(there).pooled(), 1.0
            growth = self._growth(1 / part)
            yield Estimate("contrast", name, value, error, tolerance, "layer", growth=growth)

    def _contrast(self, there: Array) -> Regression:
        """Regress on y in one part, without its plane.

        The residual is perpendicular to the plane, so that sums over the part alone are enough.
        """
        y = self.sample.y[:, there]
        weighted = self.weights[:, there] * y
        images = self.slopes_of[there]
        first, second = (sums_by_image(images, v, self.slopes) for v in (weighted, weighted * y))
        level, slope = self.plane(first, second)
        whole = second.sum(axis=1)
        power = whole - level * first.sum(axis=1) - (slope * second).sum(axis=1)
        own = power > _OF_ITSELF * whole  # else the part is all that is active
        cross = np.einsum("op,op->o", weighted, self.perpendicular[:, there])
        conversion = self._conversion * self.met_without_plane(weighted, there, level, slope)
        return Regression(*(np.where(own, each, 0.0) for each in (cross, power, conversion)))

    def places(self) -> Iterator[tuple[str, Array]]:
        """Parts of the output that may be wrong alone, by name: where they are, (P,)."""
        sample = self.sample
        images = int(sample.images.max()) + 1
        if images > 1:
            for image in range(images):
                yield f"image {image}", sample.images == image
        for name, at, length in (
            ("row", sample.rows, sample.size[0]),
            ("column", sample.across, sample.size[1]),
        ):
            if length > 2:
                yield f"first {name}", at == 0
                yield f"last {name}", at == length - 1
                yield f"odd {name}s", at % 2 == 1

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
        yield Estimate(
            "taps", "", value, error, n.taps, "tap", typical=spread, shown=min(shown, 1.0)
        )

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

    def _single_taps(self) -> Iterator[Estimate]:
        """The largest error of one tap, relative to its magnitude."""
        sample, u = self.sample, self.nuisance.unit
        score, usable = self._scores()
        at = score.argmax(axis=1)
        channels = np.arange(len(at))
        group = channels // (len(at) // sample.groups)
        met = sample.columns[group, at]  # (O, P): what each channel's suspect sees
        g = np.einsum("op,op->o", self.weights * self.perpendicular, met)
        plain = np.einsum("op,op,op->o", self.weights, met, met)
        worst = score[channels, at]  # |g| over the root of what it scatters by
        spread = np.maximum(plain, np.where(worst > 0, (g / worst) ** 2, 0.0))
        own = self.weights * self.without_plane(met)
        power = (own * met).sum(axis=1)
        seen = sample.along(own)
        seen.taps[channels, at] = 0
        conversion = self._conversion * seen.dot(seen)
        enough = (
            (power > 0.01 * plain)
            & (((met != 0) & (self.weights > 0)).sum(axis=1) >= _FEW)
            & usable[channels, at]
        )
        if not enough.any():
            return
        size = np.where(enough, power * sample.magnitude[channels, at], np.inf)
        values = g / size
        errors = np.sqrt(np.maximum(power, spread) + conversion) / size
        errors = np.hypot(errors, 2 * u)
        chosen = np.flatnonzero(enough)
        o = chosen[np.argmax(np.abs(values[chosen]) / errors[chosen])]
        name = f"channel {o}, tap {at[o]}"
        count = int(usable.sum())
        typical = _most(errors[chosen], _MOST_TAPS)
        yield Estimate("tap", name, float(values[o]), float(errors[o]), 0.0, "tap", count, typical)

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
        usable = (self.count >= _FEW)[:, None] & (spread > 0) & (sample.magnitude > 0)
        score = np.abs(found, out=sandwich)
        np.divide(score, np.sqrt(spread, out=spread), out=score, where=usable)
        score[~usable] = 0
        return score, usable

    def _noise(self) -> Iterator[Estimate]:
        """How large the errors are, and the largest of them."""
        sample, n = self.sample, self.nuisance
        on = sample.active
        if on.sum() < _FEW:
            return
        norm = self.perpendicular[on] ** 2 / self._level_unit[on]
        level = float(norm.mean())
        spread = float(norm.std()) / np.sqrt(on.sum()) * n.clustering
        error = min(spread, _SURE * level)  # few outputs scatter; what is far off is far off
        yield Estimate("noise", "", level, error, n.level, "tap")
        taps = np.abs(self.perpendicular) / np.sqrt(
            n.variance + n.taps * n.unit**2 * sample.energy + 1e-300
        )
        at = np.unravel_index(np.argmax(np.where(on, taps, 0)), on.shape)
        size = max(abs(float(sample.y[at])), 1e-300)
        value = float(self.perpendicular[at]) / size
        where = f"channel {at[0]}, image {sample.images[at[1]]}, row {sample.rows[at[1]]}"
        where += f", column {sample.across[at[1]]}"
        error = abs(value) / max(float(taps[at]), 1e-300)
        yield Estimate("output", where, value, error, 0.0, "output", int(on.sum()))

    @property
    def _level_unit(self) -> Array:
        """What the level is measured in: direct summation's, or the algorithm's own."""
        n = self.nuisance
        if n.algorithm != "direct":
            return np.asarray(n.variance)
        return np.asarray(n.unit**2 * (self.sample.energy + 0.3 * self.sample.y**2) + 1e-300)

    @property
    def _allowed_drift(self) -> float:
        return self.nuisance.allowed_drift

    @cached_property
    def _along_residual(self) -> tuple[Array, Array]:
        """Of what a plane leaves of the residual, weighted: see `Single.along`."""
        return self.sample.single.along(self.weights * self.perpendicular)

    @cached_property
    def perpendicular(self) -> Array:
        """The residual without what a scale and a bias of each channel explain."""
        return self.without_plane(self.residual)


def _most(values: Array, share: float = _MOST) -> float:
    """What this share of the channels are at most."""
    return float(np.quantile(values, share, method="higher"))
