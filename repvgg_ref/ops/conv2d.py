"""Two-dimensional convolution, as every network library means it: cross-correlation.

Each image's windows become columns, so that one matrix product per image and group does the work.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple, TypeAlias

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.ops.half import rounds_half_once

Pair: TypeAlias = tuple[int, int]
IntOrPair: TypeAlias = int | Pair


class Conv2dCache(NamedTuple):
    """What `conv2d_backward` needs: the operands and the geometry, as (height, width) pairs."""

    x: Array
    weight: Array
    has_bias: bool
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Conv2dGrads(NamedTuple):
    """Gradients with the shapes of ``x``, ``weight`` and ``bias`` (None if there was no bias)."""

    grad_x: Array
    grad_weight: Array
    grad_bias: Array | None


@rounds_half_once
def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: IntOrPair,
    padding: IntOrPair,
    dilation: IntOrPair,
    groups: int,
) -> tuple[Array, Conv2dCache]:
    """Cross-correlate `x` with `weight`, zeros around it, and add `bias`.

    ``y[n, o, h, w] = bias[o] + sum over c, i, j of weight[o, c, i, j]
    * x_padded[n, g * C/G + c, h * stride + i * dilation, w * stride + j * dilation]``
    where ``g = o // (O/G)`` (Dumoulin & Visin, arXiv 1603.07285, relationships 6 and 15).

    Parameters
    ----------
    x : (N, C, H, W) array, floating or exact
    weight : (O, C/G, Kh, Kw) array, dtype of `x`
    bias : (O,) array, dtype of `x`, or None
    stride, padding, dilation : int or (height, width) pair; pixels
    groups : int, G

    Returns
    -------
    y : (N, O, Ho, Wo) array, dtype of `x`; Ho = (H + 2 padding - dilation (Kh - 1) - 1)//stride + 1
    cache : for `conv2d_backward`

    Raises
    ------
    ShapeError
        If the shapes do not fit together, or if Ho or Wo would be less than 1.
    """
    cache = Conv2dCache(
        x,
        weight,
        bias is not None,
        _pair("stride", stride, minimum=1),
        _pair("padding", padding, minimum=0),
        _pair("dilation", dilation, minimum=1),
        groups,
    )
    _require_shapes(cache, bias)
    windows = _windows(cache)
    N, G, *window, Ho, Wo = windows.shape
    columns = windows.reshape(N, G, math.prod(window), Ho * Wo)
    # (N, G, O/G, Ho*Wo) = (G, O/G, C/G*Kh*Kw) @ (N, G, C/G*Kh*Kw, Ho*Wo)
    y = _kernel_rows(cache) @ columns
    y = y.reshape(N, weight.shape[0], Ho, Wo)  # (N, G, O/G, Ho*Wo) -> (N, O, Ho, Wo)
    return (y if bias is None else y + bias[:, None, None]), cache


@rounds_half_once
def conv2d_backward(grad_y: Array, cache: Conv2dCache) -> Conv2dGrads:
    """Gradients of a loss with respect to ``x``, ``weight`` and ``bias``.

    The transposed linear map (arXiv 1603.07285, section 4.1). With `columns` the windows of ``x``:
    ``grad_columns = weight^T @ grad_y``, added back to where each window was read;
    ``grad_weight = grad_y @ columns^T``; ``grad_bias = sum over N, Ho, Wo of grad_y``.

    Parameters
    ----------
    grad_y : (N, O, Ho, Wo) array, dtype of ``x``
    cache : from `conv2d_forward`

    Returns
    -------
    Conv2dGrads
        New arrays; ``grad_bias`` is None if there was no bias.

    Raises
    ------
    ShapeError
        If `grad_y` has not the shape of ``y``.
    """
    weight, G = cache.weight, cache.groups
    windows = _windows(cache)
    N, _, *window, Ho, Wo = windows.shape
    require_equal("conv2d", "grad_y.shape", grad_y.shape, "y.shape", (N, len(weight), Ho, Wo))
    grad_rows = grad_y.reshape(N, G, len(weight) // G, Ho * Wo)

    # (N, G, C/G*Kh*Kw, Ho*Wo) = (G, C/G*Kh*Kw, O/G) @ (N, G, O/G, Ho*Wo)
    grad_columns = _kernel_rows(cache).swapaxes(1, 2) @ grad_rows
    grad_x = _add_windows(grad_columns.reshape(windows.shape), cache)

    # (N, G, C/G, Kh, Kw, Ho, Wo) -> (G, C/G, Kh, Kw, N, Ho, Wo) -> (G, C/G*Kh*Kw, N*Ho*Wo)
    columns = windows.transpose(1, 2, 3, 4, 0, 5, 6).reshape(G, math.prod(window), N * Ho * Wo)
    # (N, G, O/G, Ho*Wo) -> (G, O/G, N, Ho*Wo) -> (G, O/G, N*Ho*Wo)
    grad_flat = grad_rows.transpose(1, 2, 0, 3).reshape(G, len(weight) // G, N * Ho * Wo)
    # (G, O/G, C/G*Kh*Kw) = (G, O/G, N*Ho*Wo) @ (G, N*Ho*Wo, C/G*Kh*Kw)
    grad_weight = (grad_flat @ columns.swapaxes(1, 2)).reshape(weight.shape)

    grad_bias = grad_y.sum(axis=(0, 2, 3)) if cache.has_bias else None
    return Conv2dGrads(grad_x, grad_weight, grad_bias)


def _kernel_rows(cache: Conv2dCache) -> Array:
    """Lay each kernel out as a row: (O, C/G, Kh, Kw) -> (G, O/G, C/G*Kh*Kw)."""
    outputs, *window = cache.weight.shape
    return cache.weight.reshape(cache.groups, outputs // cache.groups, math.prod(window))


def _windows(cache: Conv2dCache) -> Array:
    """View what each kernel tap meets at each output pixel: (N, G, C/G, Kh, Kw, Ho, Wo).

    A 1x1 kernel needs no copy later: its columns are a mere reshape of ``x``.
    """
    xp = array_module(cache.x)
    N, C, H, W = cache.x.shape
    (Kh, Kw), (ph, pw), (dh, dw) = cache.weight.shape[2:], cache.padding, cache.dilation
    span_h, span_w = dh * (Kh - 1) + 1, dw * (Kw - 1) + 1  # pixels that a dilated kernel covers
    if not (1 <= span_h <= H + 2 * ph and 1 <= span_w <= W + 2 * pw):
        raise ShapeError(
            f"conv2d: no output pixel: the kernel covers {span_h} x {span_w} pixels, "
            f"x with its padding has {H + 2 * ph} x {W + 2 * pw}"
        )
    x = xp.pad(cache.x, ((0, 0), (0, 0), (ph, ph), (pw, pw))) if ph or pw else cache.x
    # (N, C, H + 2 ph, W + 2 pw) -> (N, C, every row, every column, span_h, span_w)
    windows: Array = xp.lib.stride_tricks.sliding_window_view(x, (span_h, span_w), axis=(2, 3))
    # -> (N, C, Ho, Wo, Kh, Kw)
    windows = windows[:, :, :: cache.stride[0], :: cache.stride[1], ::dh, ::dw]
    # -> (N, C, Kh, Kw, Ho, Wo)
    windows = windows.transpose(0, 1, 4, 5, 2, 3)
    # -> (N, G, C/G, Kh, Kw, Ho, Wo): splitting one axis of a view stays a view
    return windows.reshape(N, cache.groups, C // cache.groups, *windows.shape[2:])


def _add_windows(grad_windows: Array, cache: Conv2dCache) -> Array:
    """Add every window back to the pixels it was read from: the adjoint of `_windows`."""
    xp = array_module(grad_windows)
    N, C, H, W = cache.x.shape
    (sh, sw), (ph, pw), (dh, dw) = cache.stride, cache.padding, cache.dilation
    Kh, Kw, Ho, Wo = grad_windows.shape[3:]
    taps = grad_windows.reshape(N, C, Kh, Kw, Ho, Wo)  # (N, G, C/G, ...) -> (N, C, ...)
    padded: Array = xp.zeros((N, C, H + 2 * ph, W + 2 * pw), grad_windows.dtype)
    for i, j in product(range(Kh), range(Kw)):  # the pixels under one tap are distinct
        rows = slice(i * dh, i * dh + sh * (Ho - 1) + 1, sh)
        columns = slice(j * dw, j * dw + sw * (Wo - 1) + 1, sw)
        padded[:, :, rows, columns] += taps[:, :, i, j]
    grad_x: Array = xp.ascontiguousarray(padded[:, :, ph : ph + H, pw : pw + W])
    return grad_x


def _require_shapes(cache: Conv2dCache, bias: Array | None) -> None:
    x, weight, G = cache.x, cache.weight, cache.groups
    require_equal("conv2d", "x.ndim", x.ndim, "len((N, C, H, W))", 4)
    require_equal("conv2d", "weight.ndim", weight.ndim, "len((O, C/G, Kh, Kw))", 4)
    if G < 1:
        raise ShapeError(f"conv2d: groups (={G}) must be at least 1")
    require_equal("conv2d", "C % groups", x.shape[1] % G, "no remainder", 0)
    require_equal("conv2d", "O % groups", weight.shape[0] % G, "no remainder", 0)
    require_equal("conv2d", "weight.shape[1]", weight.shape[1], "C / groups", x.shape[1] // G)
    if bias is not None:
        require_equal("conv2d", "bias.shape", bias.shape, "(O,)", weight.shape[:1])


def _pair(name: str, value: IntOrPair, *, minimum: int) -> Pair:
    """Return ``(height, width)`` of a setting that may be one number for both."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or min(pair) < minimum:
        raise ShapeError(
            f"conv2d: {name} (={value}) must be an int or a (height, width) pair, "
            f"at least {minimum}"
        )
    return pair
