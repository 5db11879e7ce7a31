"""Bilinear resizing with aligned corners: the outermost pixels keep their places."""

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

BilinearResizeCache = SeparableCache


@rounds_half_once
def bilinear_resize_forward(x: Array, *, size: Size) -> tuple[Array, BilinearResizeCache]:
    """Interpolate between the nearest pixels, linearly in height and in width.

    ``y[n, c, i, j] = sum over h, w of A[i, h] x[n, c, h, w] B[j, w]``; row i lies at
    ``i (H - 1) / (Ho - 1)`` among those of ``x``, and at 0 if it is the only one: torch's
    ``align_corners=True``, as in PSPNet (Zhao et al., arXiv 1612.01105, section 3.2).

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    size : (int, int), Ho and Wo

    Returns
    -------
    y : (N, C, Ho, Wo) array, dtype of `x`
    cache : for `bilinear_resize_backward`

    Raises
    ------
    ShapeError
        If `x` has not four axes, or `x` or ``y`` no pixel.
    """
    cache = matrices("bilinear_resize", interpolation, x, size)
    return separable_forward(x, cache), cache


@rounds_half_once
def bilinear_resize_backward(grad_y: Array, cache: BilinearResizeCache) -> Array:
    """Gradient with respect to ``x``: ``grad_x = A^T grad_y B``.

    Parameters
    ----------
    grad_y : (N, C, Ho, Wo) array, dtype of ``y``
    cache : from `bilinear_resize_forward`

    Returns
    -------
    grad_x : (N, C, H, W) array, dtype of `grad_y`

    Raises
    ------
    ShapeError
        If `grad_y` has not the size of ``y``.
    """
    return separable_backward("bilinear_resize", grad_y, cache)


def interpolation(outputs: int, pixels: int, dtype: Any) -> Array:
    """What each output takes of each pixel, (outputs, pixels): two neighbours, or one."""
    each, steps = np.arange(outputs), max(outputs - 1, 1)
    first, beyond = np.divmod(each * (pixels - 1), steps)
    matrix = np.zeros((outputs, pixels), dtype)
    matrix[each, first] = like(matrix, steps - beyond, np.array(steps))
    between = beyond > 0  # else there may be no second pixel
    matrix[each[between], first[between] + 1] = like(matrix, beyond[between], np.array(steps))
    return matrix
