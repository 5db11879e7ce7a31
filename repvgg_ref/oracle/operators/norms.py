"""Batch normalisation with the batch's own statistics: what rounding can do to it, both ways.

Source of the equations: Ioffe & Szegedy, arXiv 1502.03167, Algorithm 1 and section 3. Two right
ways to a variance must pass, the mean of ``(x - mean)^2`` and ``mean(x^2) - mean^2`` (Chan, Golub &
LeVeque, "Algorithms for computing the sample variance", Am. Stat. 37, 1983: the second errs by
``n u`` relative to ``mean(x^2)``, however small the variance, the first by less). With
``m2 = mean(x^2)`` and ``theta`` for n + 6 roundings

    |mean_hat - mean| <= theta mean|x| + mean(dx) =: dm
    |var_hat  - var | <= 4 theta m2 + mean(2 |x - mean| dx + dx^2) + dm^2

dx being what x itself is wrong by: theta m2 for the mean of squares, 2 |mean| dm + dm^2 <= 2 theta
m2 + dm^2 for the square of the mean, the rest for the subtraction. The variance is stationary in
the mean, so dm enters squared. All else is elementwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.operators.rounding import Approx, Rounding, finished, total

_AXES = (0, 2, 3)
_UNBOUNDED = 1e150
_WRITES = 4  # x - mean, x_hat, gamma x_hat and the sum may each be written to memory


class Statistics(NamedTuple):
    """Mean, variance and ``1/sqrt(var + eps)`` of each channel, (C,); `inv_std` errs relatively."""

    mean: Approx
    var: Approx
    inv_std: Approx


def batch_statistics(x: Approx, eps: float, r: Rounding) -> Statistics:
    """The batch's mean and biased variance; x is (N, C, H, W)."""
    n = x.value[:, 0].size
    theta = r.sums(n + 6)
    mean = x.value.mean(axis=_AXES)
    centred = x.value - mean[:, None, None]
    squares = np.square(x.value).mean(axis=_AXES)
    off = theta * np.abs(x.value).mean(axis=_AXES) + x.error.mean(axis=_AXES)
    spread = 2 * np.abs(centred) * x.error + x.error**2
    wrong = 4 * theta * squares + spread.mean(axis=_AXES) * (1 + theta) + off**2
    var = np.square(centred).mean(axis=_AXES)
    unit = np.sqrt(n) * r.precision.u_accumulate * squares
    return statistics(_stored(mean, off, r), Approx(var, wrong, unit), eps, r)


def statistics(mean: Approx, var: Approx, eps: float, r: Rounding) -> Statistics:
    """``1/sqrt(var + eps)`` of statistics that are known up to an error."""
    spread = var.value + eps
    share = (var.error + r.writes(2) * spread) / np.maximum(spread, 1e-300)
    root = np.where(share < 1, (1 - np.minimum(share, 1 - 1e-15)) ** -0.5, _UNBOUNDED)
    wrong = root * (1 + r.sums(8)) * (1 + r.writes(1)) - 1
    value = 1 / np.sqrt(spread)
    return Statistics(mean, var, Approx(value, value * wrong, value * r.precision.u_accumulate))


def given_statistics(mean: Array, var: Array, eps: float, r: Rounding) -> Statistics:
    """Running statistics, rounded to the format when they are read."""
    zero = np.zeros_like(mean)
    read = [Approx(v, r.precision.u_input * np.abs(v) + zero, zero) for v in (mean, var)]
    return statistics(read[0], read[1], eps, r)


def normalised(x: Approx, s: Statistics, gamma: Array, beta: Array, r: Rounding) -> Approx:
    """``gamma (x - mean) inv_std + beta``, also as ``x t + (beta - mean t)``."""
    t = np.abs(gamma) * s.inv_std.value
    centred = x.value - _on(s.mean.value)
    size = _on(t) * (np.abs(x.value) + np.abs(_on(s.mean.value))) + np.abs(_on(beta))
    value = _on(gamma * s.inv_std.value) * centred + _on(beta)
    rounding = (1 + r.sums(6)) * (1 + r.writes(_WRITES)) * (1 + 2 * r.precision.u_weight) - 1
    coherent = np.abs(_on(gamma)) * _on(s.inv_std.error)
    error = (_on(t) + coherent) * (x.error + _on(s.mean.error)) + coherent * np.abs(centred)
    error = error * (1 + rounding) + rounding * size + r.precision.tiny * (1 + _on(t))
    return finished(value, error, _size_of_roundings(size, value, r))


class NormGrads(NamedTuple):
    """Gradients (N, C, H, W), (C,) and (C,)."""

    x: Approx
    gamma: Approx
    beta: Approx


def normalised_backward(
    grad: Approx, x: Approx, s: Statistics, gamma: Array, r: Rounding, *, training: bool
) -> NormGrads:
    """Gradients through the normalisation and, in training mode, through mean and variance.

    ``grad_x = gamma inv_std (g - sum(g)/n - x_hat sum(g x_hat)/n)`` (arXiv 1502.03167, section 3);
    the two sums are grad_beta and grad_gamma.
    """
    n = x.value[:, 0].size
    inv, t = s.inv_std, np.abs(gamma) * s.inv_std.value
    share = inv.error / inv.value
    centred = x.value - _on(s.mean.value)
    size = np.abs(x.value) + np.abs(_on(s.mean.value))
    x_hat = centred * _on(inv.value)
    off = _on(inv.value) * (x.error + _on(s.mean.error) + r.sums(3) * size)
    off = off + np.abs(x_hat) * _on(share) + r.writes(2) * np.abs(x_hat)
    beta = total(grad, _AXES, r)
    gamma_grad = _sum_of_products(grad, x_hat, off, _on(inv.value) * size, r)
    g = np.abs(grad.value)
    parts, wrong = [g], grad.error
    value = grad.value
    if training:
        through_var = x_hat * _on(gamma_grad.value) / n
        value = value - _on(beta.value) / n - through_var
        parts += [np.abs(_on(beta.value)) / n + 0 * g, np.abs(through_var)]
        wrong = wrong + _on(beta.error) / n + np.abs(x_hat) * _on(gamma_grad.error) / n
        wrong = wrong + off * (np.abs(_on(gamma_grad.value)) + _on(gamma_grad.error)) / n
    magnitude = _on(t) * sum(parts)
    growth = (1 + r.sums(8)) * (1 + r.writes(_WRITES)) * (1 + 2 * r.precision.u_weight) - 1
    value = value * _on(gamma * inv.value)
    error = _on(t * (1 + share)) * wrong * (1 + growth) + growth * magnitude
    error = error + np.abs(value) * _on(share) + r.precision.tiny * (1 + _on(t))
    unit = _size_of_roundings(magnitude, value, r)
    return NormGrads(finished(value, error, unit), gamma_grad, beta)


def _sum_of_products(grad: Approx, x_hat: Array, off: Array, size: Array, r: Rounding) -> Approx:
    """``sum(g x_hat)``, also as ``inv_std (sum(g x) - mean sum(g))``: (C,)."""
    n = x_hat[:, 0].size
    growth = r.sums(n + 5) + r.precision.u_input
    value = (grad.value * x_hat).sum(axis=_AXES)
    g = np.abs(grad.value)
    error = ((g + grad.error) * off + grad.error * np.abs(x_hat) + growth * g * size).sum(_AXES)
    written = r.writes(1) * np.abs(value) + r.precision.tiny * n
    unit = np.sqrt(n) * r.precision.u_accumulate * (g * size).sum(_AXES)
    return finished(value, error * (1 + growth) + written, np.hypot(unit, written))


def running(old: Array, batch: Approx, momentum: float, factor: float, r: Rounding) -> Approx:
    """``(1 - momentum) old + momentum factor batch``, also as ``old + momentum (batch - old)``."""
    value = (1 - momentum) * old + momentum * factor * batch.value
    size = 2 * np.abs(old) + momentum * factor * np.abs(batch.value)
    growth = (1 + r.sums(6)) * (1 + r.writes(3)) * (1 + r.precision.u_input) - 1
    error = momentum * factor * batch.error * (1 + growth) + growth * size
    return finished(value, error + 3 * r.precision.tiny, growth * size)


def _stored(value: Array, error: Array, r: Rounding) -> Approx:
    error = error + r.writes(1) * np.abs(value)
    return Approx(value, error, error)


def _size_of_roundings(size: Array, value: Array, r: Rounding) -> Array:
    """Six roundings in registers and `_WRITES` writes, of numbers of such a size."""
    p = r.precision
    unit = np.sqrt(6) * p.u_accumulate * size
    return np.asarray(
        np.hypot(unit, np.sqrt(_WRITES) * p.u_store * np.maximum(size, np.abs(value)))
    )


def _on(vector: Array) -> Array:
    """(C,) -> (C, 1, 1)."""
    return np.asarray(vector)[:, None, None]
