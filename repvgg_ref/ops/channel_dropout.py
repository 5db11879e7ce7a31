"""Channel dropout: some channels of some images are set to zero, the others grow."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array, Real, scalar_like
from repvgg_ref.errors import ReportedError, require_equal
from repvgg_ref.ops.half import rounds_half_once


class ChannelDropoutCache(NamedTuple):
    """What each channel was multiplied by, (N, C, 1, 1)."""

    factors: Array


@rounds_half_once
def channel_dropout_forward(
    x: Array, kept: Array, *, rate: Real
) -> tuple[Array, ChannelDropoutCache]:
    """Keep whole channels or drop them, as `kept` says.

    ``y[n, c] = x[n, c] / (1 - rate)`` where ``kept[n, c]``, else 0 (Tompson et al., arXiv
    1411.4280, section 3.2, "SpatialDropout"; torch's ``Dropout2d``). Who calls draws `kept`, so
    the same arguments give the same result.

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    kept : (N, C) array of bool, each drawn true with probability ``1 - rate``
    rate : real number, from 0 up to but without 1

    Returns
    -------
    y : (N, C, H, W) array, dtype of `x`
    cache : for `channel_dropout_backward`

    Raises
    ------
    ShapeError
        If `x` has not four axes, or `kept` is not (N, C).
    ReportedError
        If there is no such `rate`.
    """
    require_equal("channel_dropout", "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    require_equal("channel_dropout", "kept.shape", kept.shape, "(N, C)", x.shape[:2])
    if not 0 <= rate < 1:
        raise ReportedError(
            "channel_dropout: rate is out of range", got=rate, wanted="0 <= rate < 1"
        )
    factors = kept[:, :, None, None].astype(x.dtype) / scalar_like(1 - scalar_like(rate, x), x)
    return x * factors, ChannelDropoutCache(factors)


@rounds_half_once
def channel_dropout_backward(grad_y: Array, cache: ChannelDropoutCache) -> Array:
    """Gradient with respect to ``x``: channels that were dropped get none.

    Parameters
    ----------
    grad_y : (N, C, H, W) array, dtype of ``y``
    cache : from `channel_dropout_forward`

    Returns
    -------
    grad_x : (N, C, H, W) array, dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not as many images and channels as ``y``.
    """
    wanted = cache.factors.shape[:2]
    require_equal("channel_dropout", "grad_y.shape[:2]", grad_y.shape[:2], "(N, C)", wanted)
    grad_x: Array = grad_y * cache.factors
    return grad_x
