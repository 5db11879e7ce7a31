"""What a right layer in the port's arithmetic may do: the model everything is tested against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.noise import noise_variance
from repvgg_ref.oracle.arithmetic.sample import Sample

# tau**2: correct rounding of the weights gives 0.05 to 0.1, fusing in float32 up to 0.5, engines
# with long chains up to 2.0. Behind fast algorithms the estimate itself is worse.
_TAPS, _TAPS_OF_ALGORITHMS = 2.5, 5.5


@dataclass(frozen=True)
class Nuisance:
    """The errors of one right layer, in its sample's order.

    Attributes
    ----------
    unit : float
        Unit roundoff u.
    variance : (O, P) array
        Of independent rounding.
    drift : (O, P) array or 0.0
        What directed rounding makes of the layer; already taken from the residual.
    taps : float
        tau**2: every tap may be wrong by tau u of its magnitude, independently.
    scale : float
        A whole channel may be wrong by this many u: conversion, and gates.
    allowed_drift : float
        What may be left of `drift`, in u of the layer's outputs.
    tiles : (P,) array of int or None
        Which outputs err together: a tile of Winograd's algorithm.
    clustering : float
        By how much this widens standard errors.
    gate : float
        By how many times more a gate may be wrong than direct summation makes it.
    level : float
        Largest mean squared error, in units of `variance` or of direct summation's.
    """

    unit: float
    variance: Array
    drift: Array | float = 0.0
    taps: float = _TAPS
    scale: float = 1.0
    tiles: Array | None = None
    clustering: float = 1.0
    level: float = 0.0
    algorithm: str = "direct"
    gate: float = 1.0
    allowed_drift: float = 0.0

    def fitted_again(self, sample: Sample) -> Nuisance:
        """The same with direct sums' rounding fitted to another residual, less its drift."""
        if self.algorithm != "direct":
            return self
        return replace(self, variance=noise_variance(sample, self.unit, self.level))

    def of_algorithm(
        self,
        sample: Sample,
        algorithm: str,
        variance: Array,
        *,
        tiles: Array | None = None,
        clustering: float = 1.0,
    ) -> Nuisance:
        """The errors of the same layer computed by a fast algorithm, of this variance (O, P).

        The larger its errors beside those of direct sums, the more gates and scales suffer.
        """
        variance = variance + self.unit**2 * sample.y**2 / 6  # the result is rounded once
        on = sample.active
        ratio = float(np.sqrt(variance[on].mean() / sample.energy[on].mean())) / self.unit
        return replace(
            self,
            variance=variance,
            taps=_TAPS_OF_ALGORITHMS,
            scale=self.scale + 0.15 * ratio,
            gate=self.gate + ratio / 4,
            tiles=tiles,
            clustering=clustering,
            level=3.0,
            algorithm=algorithm,
        )
