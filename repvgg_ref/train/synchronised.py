"""Batch norm over the batches of all ranks: a table of operators whose sums are all-reduced.

N ranks with B / N images each then give the gradient of one rank with B images, to rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real, array_module
from repvgg_ref.ops import BatchNormGrads, Ops
from repvgg_ref.ops.batch_norm import RunningStats
from repvgg_ref.train.comm import Comm


class SyncCache(NamedTuple):
    """What the backward pass needs; `mean` and the biased `var` are of all ranks' images."""

    x_hat: Array
    gamma: Array
    inv_std: Array
    mean: Array
    var: Array


def synchronised(ops: Ops, comm: Comm) -> Ops:
    """`ops` with batch norm's training mode over the batches of all ranks, of one size each.

    Equations as in `repvgg_ref.ops.batch_norm`, with sums over N, H, W and ranks. The gradients of
    gamma and beta stay this rank's own: they are added up with all the others. Arithmetic is in
    gamma's dtype, whatever the activations are stored in.
    """
    channels = 3 if ops.layout == "NHWC" else 1

    def over_pixels(x: Array) -> Array:
        """(C,) float64 sums over the pixels of this rank."""
        axes = tuple(axis for axis in range(4) if axis != channels)
        summed: Array = x.sum(axis=axes, dtype=np.float64)
        return summed

    def on_channels(vector: Array) -> Array:
        return vector if ops.layout == "NHWC" else vector[:, None, None]

    def forward(x: Array, gamma: Array, beta: Array, /, *, eps: Real) -> tuple[Array, SyncCache]:
        count, wide = comm.size * x.size // x.shape[channels], gamma.dtype
        mean = (comm.sum(over_pixels(x)) / count).astype(wide)
        centred = x.astype(wide, copy=False) - on_channels(mean)
        var = (comm.sum(over_pixels(centred * centred)) / count).astype(wide)
        inv_std = 1 / array_module(x).sqrt(var + float(eps))
        x_hat = centred * on_channels(inv_std)
        y = x_hat * on_channels(gamma) + on_channels(beta)
        return y.astype(x.dtype, copy=False), SyncCache(x_hat, gamma, inv_std, mean, var)

    def backward(grad_y: Array, cache: SyncCache) -> BatchNormGrads:
        xp, wide, narrow = array_module(grad_y), cache.gamma.dtype, grad_y.dtype
        grad_y = grad_y.astype(wide, copy=False)
        own = xp.stack([over_pixels(grad_y), over_pixels(grad_y * cache.x_hat)])  # (2, C)
        count = comm.size * grad_y.size // grad_y.shape[channels]
        through_mean, through_var = (comm.sum(own.copy()) / count).astype(wide)
        factor = cache.gamma * cache.inv_std
        grad_x = grad_y - on_channels(through_mean) - cache.x_hat * on_channels(through_var)
        grad_x = (on_channels(factor) * grad_x).astype(narrow, copy=False)
        grad_beta, grad_gamma = own.astype(wide)
        return BatchNormGrads(grad_x, grad_gamma, grad_beta)

    def running(
        running_mean: Array,
        running_var: Array,
        mean: Array,
        var: Array,
        /,
        *,
        momentum: Real,
        count: int,
    ) -> RunningStats:
        return ops.update_running_stats(
            running_mean, running_var, mean, var, momentum=momentum, count=count * comm.size
        )

    return replace(
        ops,
        batch_norm_train_forward=forward,
        batch_norm_train_backward=backward,
        update_running_stats=running,
        recognise_block=lambda linear: None,
    )
