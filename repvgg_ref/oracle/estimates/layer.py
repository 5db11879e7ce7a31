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
from dataclasses import replace
from functools import cached_property

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.noise import noise_unit
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample, sums_by_image
from repvgg_ref.oracle.estimates.estimate import (
    LARGEST_CLAIM,
    Claim,
    Estimate,
    needed_for,
    wilson_hilferty,
)
from repvgg_ref.oracle.estimates.gated import GatedFactors
from repvgg_ref.oracle.estimates.regression import (
    Regression,
    vary_by_roundings,
)
from repvgg_ref.oracle.estimates.tap_tests import FEW, TapTests

# A fault near the smallest that is seen is so large, in u: the noise that is fitted grows with it.
_ABOUT = 8.0
_LARGER = 1.5  # than the last fault that was tried
_SPREAD = 1 / 0.6745  # a Gaussian's standard deviation, of its median absolute value
_SURE = 0.1  # of a level: six times its limit is an alarm however few outputs there are
_FEWEST = 64  # outputs that tell tails
_OF_ITSELF = 1e-9  # of a part's energy: what is left of it beside a plane, or it is no part
# Medians over a port's layers are at most 7.6 and 18 in modelled arithmetics (where every addition
# chops 13 and 24) and at least 9 and 25 in Strassen's (tests/studies/NOTES-oracle.md).
_KURTOSIS, _RATIO = 8.0, 22.0
_WHOLE, _CONTRAST = 2.0, 1.0  # u: what a right layer's scale, and part of it, may be off by


class LayerEstimates(TapTests):
    """The estimates of one layer; `all` makes them."""

    def __init__(self, sample: Sample, nuisance: Nuisance, seed: int = 0) -> None:
        weights = np.where(sample.active, 1 / np.maximum(nuisance.variance, 1e-300), 0.0)
        super().__init__(sample, nuisance, weights / nuisance.clustering**2, seed)
        blind = vary_by_roundings(sample, nuisance.unit)
        self.weights[blind], self.count[blind] = 0.0, 0
        self.gated: GatedFactors | None = None
        self.claims = True
        if sample.gated:
            self.gated = GatedFactors(sample, nuisance, self.weights, self.residual)
            self.residual = self.residual - self.gated.of_gates.T[:, sample.images] * sample.y

    @np.errstate(all="ignore")
    def all(self, *, claims: bool = True) -> list[Estimate]:
        """Every estimate of this layer; without `claims` how a wrong bias would show is a guess."""
        self.claims = claims
        if not self.sample.active.any():
            return []
        return [
            *self._scales(),
            *self._biases(),
            *self._contrasts(),
            *self.tap_noise(),
            *self.single_taps(),
            *self._noise(),
        ]

    def heaviness(self) -> float:
        """How heavy the tails of the errors are: above 1 as in no arithmetic that is modelled.

        Two measures, and the smaller one counts: faults of a few outputs (a column) drive up the
        kurtosis alone, those of many (an image) the ratio of quantiles alone. Sums of large numbers
        that cancel, as Strassen's algorithm has them, do both.
        """
        on = self.sample.active & (self.count >= FEW)[:, None]
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

    def _scales(self) -> Iterator[Estimate]:
        u = self.nuisance.unit
        tolerance = (_WHOLE + self.nuisance.scale - 1 + self._allowed_drift) * u
        if self.gated is None:
            value, error = self._on_outputs.pooled()
            claim = Claim(self._error_beside_fault())
            yield Estimate("scale", "", value, error, tolerance, "layer", claim=claim)
        else:
            if (whole := self.gated.whole()) is not None:
                value, error, part = whole
                claim = Claim(error, growth=self.growth(1 / part))
                yield Estimate("scale", "", value, error, tolerance, "layer", claim=claim)
        values, errors = self.factors
        claim = Claim(errors, growth=self.growth())
        yield from self._channels("scale", values, claim, self._allowed_drift * u)

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """Of every channel its factor and the standard error, infinite where nothing tells it."""
        found = self._on_outputs.single() if self.gated is None else self.gated.channels()
        return found[0], np.hypot(found[1], self.nuisance.scale * self.nuisance.unit)

    @cached_property
    def _on_outputs(self) -> Regression:
        (ones, both, centred), mean = self.met_by_plane, self.mean
        return self.regress(self.sample.y, met=centred + 2 * mean * both + mean**2 * ones)

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
        value, claim = self.whole_bias()
        error = float(claim.error)
        if self.gated is not None and self.claims:
            claim = self._beside_bias(claim, _WHOLE * u + tolerance)
        yield Estimate("bias", "", value, error, _WHOLE * u + tolerance, "layer", claim=claim)
        met = self.met_by_plane[0]
        size = np.maximum(np.abs(sample.bias), sample.bias_magnitude)
        each = np.broadcast_to(size[:, None], sample.y.shape)
        found = self.regress(each, self.without_scales(self.residual), met * size**2)
        values, errors = found.single()
        part = self.power(self.without_scales(each)) / np.maximum(self.power(each), 1e-300)
        told_in = size / np.maximum(np.abs(sample.bias), 1e-300)
        claim = Claim(np.hypot(errors, u), part, self.growth(part), told_in)
        yield from self._channels("bias", values, claim, tolerance)

    def whole_bias(self) -> tuple[float, Claim]:
        """What all biases are off by, relatively, times the part of it that shows."""
        sample = self.sample
        whole = np.broadcast_to(sample.bias[:, None], sample.y.shape)
        left = self.without_scale if self.gated is None else self.without_scales
        met = self.met_by_plane[0]
        found = self.regress(whole, left(self.residual), met * sample.bias**2)
        value, error = found.pooled()
        shown = float(self.power(left(whole)).sum() / max(self.power(whole).sum(), 1e-300))
        return value, Claim(error, shown, self.growth(shown))

    def _beside_bias(self, claim: Claim, tolerance: float) -> Claim:
        """How a wrong bias shows though it is taken for noise, in part, as behind gates it is.

        Rounding is fitted to layers with such faults, larger and larger ones until they are seen.
        """
        needed = needed_for("layer")
        size = float(claim._replace(growth=0.0).smallest(needed, tolerance))
        while size <= LARGEST_CLAIM:
            faults = (size, -size, _LARGER * size, -_LARGER * size)
            if all(self._shows_bias(fault, needed, tolerance) for fault in faults):
                return claim.of_size(size, needed, tolerance)
            size *= _LARGER
        return Claim(np.inf)

    def _shows_bias(self, fault: float, needed: float, tolerance: float) -> bool:
        """Whether it is seen that all biases are off by `fault`, relatively."""
        sample = self.sample
        wrong = sample.residual + fault * sample.bias[:, None]
        fitted = self.nuisance.fitted_again(replace(sample, residual=wrong - self.nuisance.drift))
        claim = LayerEstimates(replace(sample, residual=wrong), fitted).whole_bias()[1]
        return float(claim._replace(growth=0.0).smallest(needed, tolerance)) <= abs(fault)

    def _channels(
        self, kind: str, values: Array, claims: Claim, tolerance: float
    ) -> Iterator[Estimate]:
        errors = claims.error
        enough = np.flatnonzero((self.count >= FEW) & np.isfinite(errors))
        if not len(enough):
            return
        beyond = np.maximum(0, np.abs(values) - tolerance)[enough] / errors[enough]
        worst = enough[np.argmax(beyond)]
        # In a long chain the outputs of a channel err alike, in part: all channels scatter more.
        shared = max(1.0, _SPREAD * float(np.median(np.abs(values[enough]) / errors[enough])))
        error, *others = (each[enough] for each in np.broadcast_arrays(*claims))
        claim = Claim(shared * error, *others).typical("channel", tolerance, len(enough))
        yield Estimate(
            kind, f"channel {worst}", float(values[worst]), shared * float(errors[worst]),
            tolerance, "channel", len(enough), claim=claim,
        )  # fmt: skip
        deviation = wilson_hilferty(float((np.minimum(beyond, 50) ** 2).sum()), len(enough))
        size = float(np.sqrt((errors[enough] ** 2).mean()))
        yield Estimate(kind, "channels", max(0.0, deviation) * size, size, 0.0, "tap")

    def _contrasts(self) -> Iterator[Estimate]:
        tolerance = _CONTRAST + self._allowed_drift + self.nuisance.scale - 1
        tolerance *= self.nuisance.unit
        if self.count.max() < FEW:
            return
        for name, there in self.places():
            if self.gated is not None and name.startswith("image "):
                found = self.gated.image(int(name.split()[1]))
                if found is None:
                    continue
                value, error, part = found
            else:
                value, error, part = *self._contrast(there).pooled(), 1.0
            claim = Claim(error, growth=self.growth(1 / part))
            yield Estimate("contrast", name, value, error, tolerance, "layer", claim=claim)

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

    def _noise(self) -> Iterator[Estimate]:
        """How large the errors are, and the largest of them."""
        sample, n = self.sample, self.nuisance
        on = sample.active
        if on.sum() < FEW:
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
        return noise_unit(self.sample, n.unit)

    @property
    def _allowed_drift(self) -> float:
        return self.nuisance.allowed_drift
