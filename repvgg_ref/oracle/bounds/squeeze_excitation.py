"""Errors through what follows a convolution: ReLU, average pool, 1x1 convolutions, sigmoid.

An `Interval` is an exact value with two bounds on a candidate's error. Each function here does one
operator on it: the error that came in, times the operator's Lipschitz constant, plus the error of
evaluating it (Higham, Accuracy and Stability, sections 1.6 and 3.1; notation of `bounds`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams

# Evaluating a sigmoid s(l), in units of the accumulators' u and at most: rounding the exponent's
# argument, |l| s (1 - s) <= 0.23; exp to 2 ulp = 4 u of exp, times s (1 - s) <= 1/4, 1; the
# addition 1; the quotient (GPUs: 2 ulp) 4. Together below 8. The tanh form needs 6, and libraries
# that clamp l at 18 lose exp(-18) = 0.26 u.
_SIGMOID = 8


class Interval(NamedTuple):
    """A candidate holds `value` up to `certified` in any case, and up to `likely` in most."""

    value: Array
    certified: Array
    likely: Array

    def relu(self) -> Interval:
        """max(., 0): 1-Lipschitz, and below 0 only what climbs above 0 is an error at all."""
        with np.errstate(invalid="ignore"):
            return Interval(
                np.maximum(self.value, 0), *(np.clip(self.value + e, 0, e) for e in self.errors)
            )

    @property
    def errors(self) -> tuple[Array, Array]:
        """Both bounds."""
        return self.certified, self.likely


def theta(u: float, k: float) -> float:
    """``(1 - u)**-k - 1``: how wrong a number can be after k roundings of unit roundoff u."""
    return float(np.expm1(-k * np.log1p(-u)))


def likely_theta(u: float, k: float, lam: float) -> float:
    """``exp(lam sqrt(k) u + k u^2 / (1 - u)) - 1`` (Higham & Mary 2019, theorem 2.4)."""
    return min(theta(u, k), float(np.expm1(lam * np.sqrt(k) * u + k * u**2 / (1 - u))))


def cutting_drift(p: Precision) -> float:
    """What cutting both factors off takes from a result, at most; 0 if they round to nearest.

    Only TF32 reads less than memory holds, and may cut: then errors have one sign, and their mean
    is a relative error of the whole, not one that grows with the root of the number of terms.
    """
    return p.u_input + p.u_weight if p.u_input > p.u_store else 0.0


def pooled(z: Interval, p: Precision, lam: float) -> Interval:
    """Mean over the last axis, written to memory once: (C, P) -> (C,).

    Each of P terms meets P - 1 additions, and a division or a rounded 1/P and its product.
    """
    steps = z.value.shape[-1] + 1
    value, size = z.value.mean(axis=-1), np.abs(z.value).mean(axis=-1)

    def error(before: Array, g: float) -> Array:
        summed = (1 + g) * before.mean(axis=-1) + g * size + 2 * p.tiny_accumulate
        return np.asarray((1 + p.u_store) * summed + p.u_store * np.abs(value) + p.tiny)

    u = p.u_accumulate
    return Interval(
        value, error(z.certified, theta(u, steps)), error(z.likely, likely_theta(u, steps, lam))
    )


def dense(x: Interval, weight: Array, bias: Array, p: Precision, lam: float) -> Interval:
    """``weight @ x + bias``: (C,) -> (O,).

    Inputs and weights are rounded (relative errors u, underflows tiny), C products and the bias
    added; product and sum may each be written to memory.
    """
    steps = len(x.value) + 1
    value = weight @ x.value + bias
    sizes, magnitudes = np.abs(x.value), np.abs(weight)
    magnitude = magnitudes @ sizes + np.abs(bias)
    written = p.u_store * (2 * np.abs(value) + np.abs(bias))
    underflow = p.tiny * (magnitudes.sum(axis=1) + sizes.sum() + 3) + p.tiny_accumulate * steps

    def error(before: Array, g: float, random: Array | float) -> Array:
        own = g * magnitude + random + (1 + g) * (magnitudes @ before + 2 * underflow)
        return np.asarray((1 + p.u_store) ** 2 * (own + written))

    reading = (1 + theta(p.u_input, 1)) * (1 + theta(p.u_weight, 1))
    certified = error(x.certified, reading * (1 + theta(p.u_accumulate, steps)) - 1, 0.0)
    energy = np.sqrt(weight**2 @ x.value**2 + bias**2)
    random = lam * np.hypot(p.u_input, p.u_weight) * energy
    drift = cutting_drift(p) * np.abs(value)
    likely = error(x.likely, likely_theta(p.u_accumulate, steps, lam), random + drift)
    return Interval(value, certified, np.minimum(likely, certified))


def sigmoid(x: Interval, p: Precision) -> Interval:
    """``1 / (1 + exp(-x))``: Lipschitz constant 1/4.

    exp, sum and quotient may each be written to memory, an error relative to the result; an
    exp(-x) beyond the format's range gives 0 instead of less than 1/largest.
    """
    value = 0.5 * (1 + np.tanh(x.value / 2))
    writes = theta(p.u_store, 3)

    def error(before: Array) -> Array:
        inside = before / 4 + _SIGMOID * p.u_accumulate
        return np.asarray(
            np.minimum(1, (1 + writes) * inside + writes * value + 1 / p.largest + p.tiny)
        )

    return Interval(value, error(x.certified), error(x.likely))


def squeeze_excitation(
    z: Interval, se: SqueezeExcitationParams, p: Precision, lam: float
) -> Interval:
    """``z * sigmoid(up(relu(down(mean z))))`` with z (C, P); the product is written to memory."""
    gate = gate_interval(z, se, p, lam)
    g, size = gate.value[:, None], np.abs(z.value)
    rounding = theta(p.u_accumulate, 1) + theta(p.u_store, 1)

    def error(before: Array, of_gate: Array) -> Array:
        e = of_gate[:, None]
        return np.asarray(
            (1 + rounding) * (before * (g + e) + size * e) + rounding * size * g + p.tiny
        )

    return Interval(z.value * g, error(z.certified, gate.certified), error(z.likely, gate.likely))


def gate_interval(z: Interval, se: SqueezeExcitationParams, p: Precision, lam: float) -> Interval:
    """``sigmoid(up(relu(down(mean z))))`` of each channel: (C, P) -> (C,)."""
    hidden = dense(pooled(z, p, lam), se.down_weight, se.down_bias, p, lam).relu()
    return sigmoid(dense(hidden, se.up_weight, se.up_bias, p, lam), p)
