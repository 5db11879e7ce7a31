"""Max pooling: each channel's largest value in a window."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import ShapeError, require_equal


class MaxPoolCache(NamedTuple):
    """Which tap won each window, (N, C, Ho, Wo), the shape of ``x`` and the geometry."""

    winner: Array
    x_shape: tuple[int, ...]
    kernel: int
    stride: int
    padding: int


def max_pool_forward(
    x: Array, *, kernel: int, stride: int, padding: int
) -> tuple[Array, MaxPoolCache]:
    """Take the largest of each window; pixels of padding never win.

    ``y[n, c, h, w] = max over i, j of x[n, c, h * stride - padding + i, w * stride - padding + j]``

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    kernel, stride, padding : int, pixels; padding at most kernel / 2

    Returns
    -------
    y : (N, C, Ho, Wo) array, dtype of `x`; NaN where a window holds one
    cache : for `max_pool_backward`; of equal values the first wins, as in torch

    Raises
    ------
    ShapeError
        If `x` has not four axes, or no window fits.
    """
    require_equal("max_pool", "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    xp = array_module(x)
    size = tuple((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])
    if min(size) < 1 or 2 * padding > kernel:
        raise ShapeError(
            f"max_pool: kernel (={kernel}) and padding (={padding}) do not fit x.shape (={x.shape})"
        )
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = xp.pad(x, border, constant_values=-float("inf")) if padding else x
    first, *others = _taps(padded, kernel, stride, size)
    best, winner = first, xp.zeros(first.shape, int)
    for tap, part in enumerate(others, start=1):
        better = (part > best) | ((part != part) & (best == best))  # a NaN stays
        best, winner = xp.where(better, part, best), xp.where(better, tap, winner)
    return xp.ascontiguousarray(best), MaxPoolCache(winner, x.shape, kernel, stride, padding)


def max_pool_backward(grad_y: Array, cache: MaxPoolCache) -> Array:
    """Gradient with respect to ``x``: each window's goes to the value that won it.

    Parameters
    ----------
    grad_y : (N, C, Ho, Wo) array, dtype of ``y``
    cache : from `max_pool_forward`

    Returns
    -------
    grad_x : (N, C, H, W) array, dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    require_equal("max_pool", "grad_y.shape", grad_y.shape, "y.shape", cache.winner.shape)
    xp, p = array_module(grad_y), cache.padding
    N, C, H, W = cache.x_shape
    padded: Array = xp.zeros((N, C, H + 2 * p, W + 2 * p), grad_y.dtype)
    size = grad_y.shape[2:]
    for tap, part in enumerate(_taps(padded, cache.kernel, cache.stride, size)):
        part += xp.where(cache.winner == tap, grad_y, 0)
    grad_x: Array = xp.ascontiguousarray(padded[:, :, p : p + H, p : p + W])
    return grad_x


def _taps(padded: Array, kernel: int, stride: int, size: tuple[int, ...]) -> list[Array]:
    """What each tap of the window meets: views (N, C, Ho, Wo), tap by tap."""
    ends = [stride * (n - 1) + 1 for n in size]
    return [
        padded[:, :, i : i + ends[0] : stride, j : j + ends[1] : stride]
        for i, j in product(range(kernel), repeat=2)
    ]
