"""Adaptive average pooling: each channel's means over a grid of so many windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops.half import rounds_half_once
from repvgg_ref.ops.separable import (
    SeparableCache,
    Size,
    like,
    matrices,
    separable_backward,
    separable_forward,
)

AdaptiveAvgPoolCache = SeparableCache


@rounds_half_once
def adaptive_avg_pool_forward(x: Array, *, size: Size) -> tuple[Array, AdaptiveAvgPoolCache]:
    """Average each channel over a grid of windows that cover the image and may overlap.

    Window i covers rows ``floor(i H / Ho)`` up to but without ``ceil((i + 1) H / Ho)``, the same
    for columns: the pyramid of PSPNet (Zhao et al., arXiv 1612.01105, section 3.2).

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    size : (int, int), Ho and Wo

    Returns
    -------
    y : (N, C, Ho, Wo) array, dtype of `x`
    cache : for `adaptive_avg_pool_backward`

    Raises
    ------
    ShapeError
        If `x` has not four axes, or `x` or ``y`` no pixel.
    """
    cache = matrices("adaptive_avg_pool", averaging, x, size)
    return separable_forward(x, cache), cache


@rounds_half_once
def adaptive_avg_pool_backward(grad_y: Array, cache: AdaptiveAvgPoolCache) -> Array:
    """Gradient with respect to ``x``: each pixel gets its share from every window over it.

    Parameters
    ----------
    grad_y : (N, C, Ho, Wo) array, dtype of ``y``
    cache : from `adaptive_avg_pool_forward`

    Returns
    -------
    grad_x : (N, C, H, W) array, dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the size of ``y``.
    """
    return separable_backward("adaptive_avg_pool", grad_y, cache)


def windows(outputs: int, pixels: int) -> list[tuple[int, int]]:
    """First pixel of each window, and the one after its last."""
    return [(i * pixels // outputs, -(-(i + 1) * pixels // outputs)) for i in range(outputs)]


def averaging(outputs: int, pixels: int, dtype: Any) -> Array:
    """What each output takes of each pixel, (outputs, pixels): one over the window's length."""
    matrix = np.zeros((outputs, pixels), dtype)
    for output, (first, end) in enumerate(windows(outputs, pixels)):
        matrix[output, first:end] = like(matrix, np.ones(end - first, int), np.array(end - first))
    return matrix
