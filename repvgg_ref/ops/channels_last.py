"""The operators of segmentation for tables of layout NHWC: the reference's, around its arrays.

Resizing and pooling multiply by the same two matrices, which channels that lie together suit: each
is one product of large matrices. 16-bit images are computed in float32 and rounded once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, Real, array_module
from repvgg_ref.errors import require_equal
from repvgg_ref.ops.adaptive_avg_pool import averaging
from repvgg_ref.ops.bilinear_resize import interpolation
from repvgg_ref.ops.channel_dropout import (
    ChannelDropoutCache,
    channel_dropout_backward,
    channel_dropout_forward,
)
from repvgg_ref.ops.concat import ConcatCache, concat_backward, concat_forward
from repvgg_ref.ops.pixel_cross_entropy import require_pixel_labels
from repvgg_ref.ops.separable import Matrix, SeparableCache, Size, matrices


def resize_forward(x: Array, *, size: Size) -> tuple[Array, SeparableCache]:
    """`ops.bilinear_resize.bilinear_resize_forward` for x (N, H, W, C)."""
    return _forward("bilinear_resize", interpolation, x, size)


def resize_backward(grad_y: Array, cache: SeparableCache) -> Array:
    """`ops.bilinear_resize.bilinear_resize_backward` for grad_y (N, Ho, Wo, C)."""
    return _backward("bilinear_resize", grad_y, cache)


def pool_forward(x: Array, *, size: Size) -> tuple[Array, SeparableCache]:
    """`ops.adaptive_avg_pool.adaptive_avg_pool_forward` for x (N, H, W, C)."""
    return _forward("adaptive_avg_pool", averaging, x, size)


def pool_backward(grad_y: Array, cache: SeparableCache) -> Array:
    """`ops.adaptive_avg_pool.adaptive_avg_pool_backward` for grad_y (N, Ho, Wo, C)."""
    return _backward("adaptive_avg_pool", grad_y, cache)


def dropout_forward(x: Array, kept: Array, *, rate: Real) -> tuple[Array, ChannelDropoutCache]:
    """`ops.channel_dropout.channel_dropout_forward` for x (N, H, W, C)."""
    y, cache = channel_dropout_forward(to_nchw(_wide(x)), kept, rate=rate)
    return to_nhwc(y, x.dtype), cache


def dropout_backward(grad_y: Array, cache: ChannelDropoutCache) -> Array:
    """`ops.channel_dropout.channel_dropout_backward` for grad_y (N, H, W, C)."""
    return to_nhwc(channel_dropout_backward(to_nchw(_wide(grad_y)), cache), grad_y.dtype)


def joined_forward(*parts: Array) -> tuple[Array, ConcatCache]:
    """`ops.concat.concat_forward` for parts (N, H, W, C_k)."""
    y, cache = concat_forward(*map(to_nchw, parts))
    return to_nhwc(y, parts[0].dtype), cache


def joined_backward(grad_y: Array, cache: ConcatCache) -> tuple[Array, ...]:
    """`ops.concat.concat_backward` for grad_y (N, H, W, sum of C_k)."""
    parts = concat_backward(to_nchw(grad_y), cache)
    return tuple(to_nhwc(part, grad_y.dtype) for part in parts)


class PixelLossCache(NamedTuple):
    """Softmax (pixels, classes), classes and weights (pixels,), and what ``logits`` were."""

    probabilities: Array
    classes: Array
    weights: Array
    shape: tuple[int, ...]
    dtype: Any


def pixel_loss_forward(
    logits: Array, labels: Array, *, ignored: int
) -> tuple[Array, PixelLossCache]:
    """`ops.pixel_cross_entropy.counted_cross_entropy` for logits (N, H, W, classes)."""
    xp, labels = array_module(logits), labels.reshape(-1)
    wide = _wide(logits).reshape(-1, logits.shape[-1])  # (pixels, classes)
    counts = labels != ignored
    classes = xp.where(counts, labels, 0).astype(np.int64)
    weights = counts.astype(wide.dtype) / xp.maximum(counts.sum(), 1).astype(wide.dtype)
    # Class by class: reducing an axis of few numbers takes three times as long.
    largest = functools.reduce(xp.maximum, (wide[:, k] for k in range(wide.shape[1])))
    shifted = wide - largest[:, None]  # so that exp cannot overflow
    own = xp.take_along_axis(shifted, classes[:, None], axis=1)[:, 0]
    powers = xp.exp(shifted)
    sums = powers @ xp.ones((wide.shape[1], 1), wide.dtype)  # (pixels, 1)
    loss = -xp.where(counts, weights * (own - xp.log(sums[:, 0])), 0).sum()
    cache = PixelLossCache(powers / sums, classes, weights, logits.shape, logits.dtype)
    return xp.asarray(loss, dtype=logits.dtype), cache


def checked_pixel_loss_forward(
    logits: Array, labels: Array, *, ignored: int
) -> tuple[Array, PixelLossCache]:
    """`ops.pixel_cross_entropy.pixel_cross_entropy_forward` for logits (N, H, W, classes)."""
    require_pixel_labels(to_nchw(logits).shape, labels, ignored=ignored)
    return pixel_loss_forward(logits, labels, ignored=ignored)


def pixel_loss_backward(cache: PixelLossCache) -> Array:
    """`ops.pixel_cross_entropy.pixel_cross_entropy_backward`; (N, H, W, classes)."""
    probabilities, classes, weights, shape, dtype = cache
    hot = classes[:, None] == array_module(classes).arange(shape[-1])
    weighed = (probabilities - hot) * weights[:, None]
    grad: Array = array_module(classes).where(weights[:, None] > 0, weighed, 0)
    return grad.reshape(shape).astype(dtype, copy=False)


def to_nchw(x: Array) -> Array:
    """(N, H, W, C) as a view (N, C, H, W); anything but an image as it is."""
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def to_nhwc(y: Array, dtype: Any) -> Array:
    """(N, C, H, W) as (N, H, W, C), contiguous, of `dtype`."""
    found: Array = array_module(y).ascontiguousarray(y.transpose(0, 2, 3, 1), dtype=dtype)
    return found


def _forward(operator: str, matrix: Matrix, x: Array, size: Size) -> tuple[Array, SeparableCache]:
    wide = _wide(x)
    cache = matrices(operator, matrix, to_nchw(wide), size)
    return _mapped(cache.rows, cache.columns, wide, x.dtype), cache


def _backward(operator: str, grad_y: Array, cache: SeparableCache) -> Array:
    wanted = len(cache.rows), len(cache.columns)
    require_equal(operator, "grad_y.shape[1:3]", grad_y.shape[1:3], "size", wanted)
    return _mapped(cache.rows.T, cache.columns.T, _wide(grad_y), grad_y.dtype)


def _mapped(rows: Array, columns: Array, x: Array, dtype: Any) -> Array:
    """``rows x columns^T`` of each channel of x (N, H, W, C)."""
    N, H, W, C = x.shape
    Ho, Wo = len(rows), len(columns)
    # (Ho, N W C) = (Ho, H) @ (H, N W C): two dimensions, as cuBLAS has its fastest products
    tall = rows @ x.transpose(1, 0, 2, 3).reshape(H, N * W * C)
    # (W, N Ho C) <- (Ho, N, W, C)
    turned = tall.reshape(Ho, N, W, C).transpose(2, 1, 0, 3).reshape(W, N * Ho * C)
    # (Wo, N Ho C) = (Wo, W) @ (W, N Ho C)
    y = (columns @ turned).reshape(Wo, N, Ho, C).transpose(1, 2, 0, 3)
    found: Array = array_module(x).ascontiguousarray(y, dtype=dtype)
    return found


def _wide(x: Array) -> Array:
    """16-bit arrays in float32."""
    if x.dtype.itemsize > 2:
        return x
    wide: Array = x.astype(np.float32)
    return wide
