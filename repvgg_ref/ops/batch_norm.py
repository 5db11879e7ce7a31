"""Batch normalisation over N, H and W, in training and in evaluation mode.

Source of every equation: Ioffe & Szegedy, arXiv 1502.03167: Algorithm 1 (forward), section 3
(backward, unnumbered), Algorithm 2 (evaluation).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from repvgg_ref.arrays import Array, Real, scalar_like, sqrt
from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.ops.half import rounds_half_once


class BatchNormTrainCache(NamedTuple):
    """What the backward pass needs; `mean` and the biased `var` also feed the running statistics.

    For float16 input all of it is float32.
    """

    x_hat: Array
    gamma: Array
    inv_std: Array
    mean: Array
    var: Array


class BatchNormEvalCache(NamedTuple):
    """What `batch_norm_eval_backward` needs."""

    x_hat: Array
    gamma: Array
    inv_std: Array


class BatchNormGrads(NamedTuple):
    """Gradients with the shapes (N, C, H, W), (C,) and (C,)."""

    grad_x: Array
    grad_gamma: Array
    grad_beta: Array


class RunningStats(NamedTuple):
    """The running averages after a step, (C,) each."""

    running_mean: Array
    running_var: Array


@rounds_half_once
def batch_norm_train_forward(
    x: Array, gamma: Array, beta: Array, *, eps: Real
) -> tuple[Array, BatchNormTrainCache]:
    """Normalise each channel by the batch's own mean and biased variance.

    ``y = gamma * x_hat + beta``, ``x_hat = (x - mean) / sqrt(var + eps)``,
    ``var = mean of (x - mean)^2`` over N, H, W (arXiv 1502.03167, Algorithm 1).

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    gamma, beta : (C,) arrays, dtype of `x`
    eps : float, or Fraction for exact `x`

    Returns
    -------
    y : (N, C, H, W) array, dtype of `x`
    cache : for `batch_norm_train_backward` and, its ``mean`` and ``var``, `update_running_stats`

    Raises
    ------
    ShapeError
        If the shapes do not fit together, or if a channel has no value.
    InexactError
        If `x` is exact and some ``var + eps`` is not the square of a rational.
    """
    _require_shapes(x, gamma=gamma, beta=beta)
    if _count(x) == 0:
        raise ShapeError(f"batch_norm: x.shape (={x.shape}) leaves a channel without values")
    count = scalar_like(_count(x), x)
    mean = x.sum(axis=(0, 2, 3)) / count  # (N, C, H, W) -> (C,)
    centred = x - _per_channel(mean)
    var = (centred * centred).sum(axis=(0, 2, 3)) / count  # (N, C, H, W) -> (C,)
    inv_std = scalar_like(1, x) / sqrt(var + scalar_like(eps, x))
    x_hat = centred * _per_channel(inv_std)
    y = _per_channel(gamma) * x_hat + _per_channel(beta)
    return y, BatchNormTrainCache(x_hat, gamma, inv_std, mean, var)


@rounds_half_once
def batch_norm_train_backward(grad_y: Array, cache: BatchNormTrainCache) -> BatchNormGrads:
    """Gradients through the normalisation and through the batch's mean and variance.

    ``grad_x = gamma * inv_std * (grad_y - mean(grad_y) - x_hat * mean(grad_y * x_hat))``,
    ``grad_gamma = sum(grad_y * x_hat)``, ``grad_beta = sum(grad_y)``, means and sums over N, H, W
    (arXiv 1502.03167, section 3, the six equations put into one).

    Parameters
    ----------
    grad_y : (N, C, H, W) array, dtype of ``x``
    cache : from `batch_norm_train_forward`

    Returns
    -------
    BatchNormGrads

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    x_hat, gamma, inv_std = cache.x_hat, cache.gamma, cache.inv_std
    fixed = _grads_at_fixed_statistics(grad_y, x_hat, gamma, inv_std)
    count = scalar_like(_count(grad_y), grad_y)
    through_mean = _per_channel(gamma * inv_std * fixed.grad_beta / count)
    through_var = _per_channel(gamma * inv_std * fixed.grad_gamma / count) * x_hat
    return fixed._replace(grad_x=fixed.grad_x - through_mean - through_var)


@rounds_half_once
def batch_norm_eval_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: Real
) -> tuple[Array, BatchNormEvalCache]:
    """Normalise each channel by a given mean and variance.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` (arXiv 1502.03167, Algorithm 2, line 11).

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    gamma, beta, mean, var : (C,) arrays, dtype of `x`
    eps : float, or Fraction for exact `x`

    Returns
    -------
    y : (N, C, H, W) array, dtype of `x`
    cache : for `batch_norm_eval_backward`

    Raises
    ------
    ShapeError
        If the shapes do not fit together.
    InexactError
        If `x` is exact and some ``var + eps`` is not the square of a rational.
    """
    _require_shapes(x, gamma=gamma, beta=beta, mean=mean, var=var)
    inv_std = scalar_like(1, var) / sqrt(var + scalar_like(eps, var))
    x_hat = (x - _per_channel(mean)) * _per_channel(inv_std)
    y = _per_channel(gamma) * x_hat + _per_channel(beta)
    return y, BatchNormEvalCache(x_hat, gamma, inv_std)


@rounds_half_once
def batch_norm_eval_backward(grad_y: Array, cache: BatchNormEvalCache) -> BatchNormGrads:
    """Gradients with the statistics held constant.

    ``grad_x = gamma * inv_std * grad_y``, ``grad_gamma = sum(grad_y * x_hat)``,
    ``grad_beta = sum(grad_y)``, sums over N, H, W (derivative of arXiv 1502.03167, Algorithm 2).

    Parameters
    ----------
    grad_y : (N, C, H, W) array, dtype of ``x``
    cache : from `batch_norm_eval_forward`

    Returns
    -------
    BatchNormGrads

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    return _grads_at_fixed_statistics(grad_y, cache.x_hat, cache.gamma, cache.inv_std)


def update_running_stats(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    var: Array,
    *,
    momentum: Real,
    count: int,
) -> RunningStats:
    """Move the running averages towards one batch; torch's convention.

    ``new = (1 - momentum) * old + momentum * batch``; the batch variance enters unbiased, as
    ``var * n / (n - 1)``, the mean as it is (arXiv 1502.03167, Algorithm 2, line 10).

    Parameters
    ----------
    running_mean, running_var : (C,) arrays, floating or exact; left as they are
    mean, var : (C,) arrays, from the cache of `batch_norm_train_forward`: `var` is biased
    momentum : float, or Fraction for exact arrays
    count : int, n = N * H * W

    Returns
    -------
    RunningStats
        New arrays, dtype of `running_mean` and `running_var`.

    Raises
    ------
    ShapeError
        If the shapes differ, or if `count` is below 2: one value has no unbiased variance.
    """
    for name, value in {"running_var": running_var, "mean": mean, "var": var}.items():
        wanted = running_mean.shape
        require_equal(
            "update_running_stats", f"{name}.shape", value.shape, "running_mean.shape", wanted
        )
    if count < 2:
        raise ShapeError(
            f"update_running_stats: count (={count}) must be at least 2: "
            "one value per channel has no unbiased variance"
        )
    new = scalar_like(momentum, running_mean)
    unbiased_var = var * scalar_like(count, var) / (count - 1)
    return RunningStats(
        ((1 - new) * running_mean + new * mean).astype(running_mean.dtype, copy=False),
        ((1 - new) * running_var + new * unbiased_var).astype(running_var.dtype, copy=False),
    )


def _grads_at_fixed_statistics(
    grad_y: Array, x_hat: Array, gamma: Array, inv_std: Array
) -> BatchNormGrads:
    """Gradients as if mean and variance did not depend on ``x``."""
    require_equal("batch_norm", "grad_y.shape", grad_y.shape, "y.shape", x_hat.shape)
    return BatchNormGrads(
        _per_channel(gamma * inv_std) * grad_y,
        (grad_y * x_hat).sum(axis=(0, 2, 3)),  # (N, C, H, W) -> (C,)
        grad_y.sum(axis=(0, 2, 3)),  # (N, C, H, W) -> (C,)
    )


def _per_channel(vector: Array) -> Array:
    """Shape a vector so that it broadcasts over images: (C,) -> (C, 1, 1)."""
    return vector[:, None, None]


def _count(x: Array) -> int:
    """Return N * H * W, how many values each channel has."""
    return math.prod((x.shape[0], *x.shape[2:]))


def _require_shapes(x: Array, **vectors: Array) -> None:
    require_equal("batch_norm", "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    for name, vector in vectors.items():
        require_equal("batch_norm", f"{name}.shape", vector.shape, "(C,)", (x.shape[1],))
