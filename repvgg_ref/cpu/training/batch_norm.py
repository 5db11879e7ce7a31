"""Batch norm with the batch's statistics, NHWC: passes over one image at a time, on all threads.

Equations as in `ops.batch_norm`. Sums over pixels are taken image by image in the array's own
dtype and added up in float64. A vector meets a whole row of pixels at once, as (W * C,): inner
loops of C numbers alone would be too short.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real
from repvgg_ref.cpu.workers.pool import share_out
from repvgg_ref.ops import REFERENCE, BatchNormGrads


class BatchNormCache(NamedTuple):
    """`x_hat` (N, H, W, C); vectors are (C,)."""

    x_hat: Array
    gamma: Array
    inv_std: Array
    mean: Array
    var: Array


def batch_norm_train_forward(
    x: Array, gamma: Array, beta: Array, *, eps: Real
) -> tuple[Array, BatchNormCache]:
    """`ops.batch_norm.batch_norm_train_forward` for x (N, H, W, C)."""
    if x.ndim != 4 or x.size == 0 or {gamma.shape, beta.shape} != {x.shape[3:]}:
        REFERENCE.batch_norm_train_forward(x.transpose(0, 3, 1, 2), gamma, beta, eps=eps)  # refuses
    images, height, width, channels = x.shape
    count = images * height * width
    sums = np.empty((images, channels), x.dtype)

    def add(worker: int, n: int) -> None:
        sums[n] = _sum(x[n])

    share_out(images, add)
    mean = (sums.sum(axis=0, dtype=np.float64) / count).astype(x.dtype)
    x_hat, y = np.empty_like(x, order="C"), np.empty_like(x, order="C")

    def centre(worker: int, n: int) -> None:
        np.subtract(_rows(x[n]), np.tile(mean, width), out=_rows(x_hat[n]))
        sums[n] = _sum(x_hat[n] * x_hat[n])

    share_out(images, centre)
    var = (sums.sum(axis=0, dtype=np.float64) / count).astype(x.dtype)
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))

    def scale(worker: int, n: int) -> None:
        rows, out = _rows(x_hat[n]), _rows(y[n])
        rows *= np.tile(inv_std, width)
        np.multiply(rows, np.tile(gamma, width), out=out)
        out += np.tile(beta, width)

    share_out(images, scale)
    return y, BatchNormCache(x_hat, gamma, inv_std, mean, var)


def batch_norm_train_backward(grad_y: Array, cache: BatchNormCache) -> BatchNormGrads:
    """`ops.batch_norm.batch_norm_train_backward` for grad_y (N, H, W, C)."""
    x_hat = cache.x_hat
    images, height, width, channels = x_hat.shape
    sums = np.empty((2, images, channels), grad_y.dtype)

    def add(worker: int, n: int) -> None:
        sums[0, n] = _sum(grad_y[n])
        sums[1, n] = _sum(grad_y[n] * x_hat[n])

    share_out(images, add)
    grad_beta, grad_gamma = sums.sum(axis=1, dtype=np.float64).astype(grad_y.dtype)
    count = images * height * width
    factor = cache.gamma * cache.inv_std
    grad_x = np.empty_like(grad_y, order="C")

    def through(worker: int, n: int) -> None:
        rows = _rows(grad_x[n])
        np.multiply(_rows(x_hat[n]), np.tile(-grad_gamma / count, width), out=rows)
        rows += _rows(grad_y[n])
        rows -= np.tile(grad_beta / count, width)
        rows *= np.tile(factor, width)

    share_out(images, through)
    return BatchNormGrads(grad_x, grad_gamma, grad_beta)


def _rows(image: Array) -> Array:
    """(H, W, C) -> (H, W * C)."""
    return image.reshape(len(image), -1)


def _sum(image: Array) -> Array:
    """(H, W, C) -> (C,): first over rows, in long inner loops, then over the pixels of one."""
    total: Array = _rows(image).sum(axis=0).reshape(image.shape[1:]).sum(axis=0)
    return total
