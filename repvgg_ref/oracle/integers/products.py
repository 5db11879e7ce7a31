"""Sums of products as wrong devices form them: `Sums.products`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.integers.program import Sums


def _columns(sums: Sums, padded: Array) -> Array:
    """Windows of padded numbers: (N, G, C/G, K, K, Ho, Wo)."""
    span = sums.dilation * (sums.weight.shape[2] - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (span, span), axis=(2, 3))
    step, apart = sums.stride, sums.dilation
    windows = windows[:, :, ::step, ::step, ::apart, ::apart].transpose(0, 1, 4, 5, 2, 3)
    N, C, *rest = windows.shape
    return windows.reshape(N, sums.groups, C // sums.groups, *rest)


def as_other(x: Array, dtype: np.dtype[np.integer]) -> Array:
    """The bytes of numbers of `dtype`, read as the other type of 8 bits."""
    found: Array = x.astype(np.uint8).astype(np.int8 if dtype == np.uint8 else np.uint8)
    return found


def reread(
    sums: Sums, dtype: np.dtype[np.integer], padding: int | None, padded: Array, weight: Array
) -> Array:
    """Exact sums of numbers read as the other type; `padding` stands around them, if not theirs."""
    bias = np.zeros(len(weight), np.int64)
    exact = replace(
        sums, weight=weight, bias=bias, pads=((0, 0), (0, 0)), products=None, narrow=None
    )
    read = as_other(padded, dtype).astype(np.int64)
    if padding is not None:
        (top, bottom), (left, right) = sums.pads
        rows, columns = (
            slice(a, n - b)
            for a, b, n in ((top, bottom, read.shape[2]), (left, right, read.shape[3]))
        )
        around = np.full_like(read, padding)
        around[:, :, rows, columns] = read[:, :, rows, columns]
        read = around
    return exact.of(read)


def in_pairs(
    sums: Sums, dtype: np.dtype[np.integer], channels_last: bool, padded: Array, weight: Array
) -> Array:
    """Sums of products, two at a time saturated at 16 bits.

    The instruction multiplies unsigned by signed bytes: int8 numbers are moved up by 128 first,
    and the zero point's share, so moved, is taken off at the end.
    """
    up = 128 if dtype == np.int8 else 0
    windows = _columns(sums, padded + up)
    axes = (0, 1, 3, 4, 2, 5, 6) if channels_last else (0, 1, 2, 3, 4, 5, 6)
    N, G, *_, Ho, Wo = windows.shape
    columns = windows.transpose(axes).reshape(N, G, -1, Ho * Wo)
    kernel = weight.transpose(0, 2, 3, 1) if channels_last else weight
    rows = kernel.reshape(G, len(weight) // G, -1)
    if rows.shape[2] % 2:
        columns = np.pad(columns, ((0, 0), (0, 0), (0, 1), (0, 0)))
        rows = np.pad(rows, ((0, 0), (0, 0), (0, 1)))
    total = np.zeros((N, G, rows.shape[1], Ho * Wo), np.int64)
    for k in range(0, rows.shape[2], 2):
        pair = np.einsum("gok,ngkp->ngop", rows[:, :, k : k + 2], columns[:, :, k : k + 2])
        total += np.clip(pair, -(2**15), 2**15 - 1)
    total -= (sums.subtracted + up) * rows.sum(axis=2)[None, :, :, None]
    return total.reshape(N, len(weight), Ho, Wo)
