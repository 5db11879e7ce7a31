"""Direct 3x3 (or K x K) convolution in NHWC: gather windows in cache, multiply once.

    y = columns W + b,        columns (pixels, K * K * C)

`columns` is laid out for a block of output rows only, in scratch that stays in cache, and is
gathered in runs of K * C numbers, since the pixels of a window's row lie side by side. The copy
costs 9 C moves a pixel against 9 C O multiplications.

Also tried, with stride 2 on one AVX-512 core (GFLOP/s; this form: 93-147): one product a kernel row
on overlapping views (Wo, 3 C), nothing copied, the three sums added: 84, 124, 96, 106, 75, 59 for
48, 48, 64, 128, 256, 192 channels, because a product has only Wo rows and the sum passes through
memory three times. The flat-shift form adds nine times.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.layout import image_runs
from repvgg_ref.cpu.pool import Step


class Window(NamedTuple):
    """Geometry of a convolution: kernel side, stride, dilation, groups, output height and width."""

    kernel: int
    stride: int
    dilation: int
    groups: int
    height: int
    width: int


def pack_weight(weight: Array, groups: int) -> Array:
    """(O, C/G, K, K) -> (G, K * K * C/G, O/G), in the order of `gather`."""
    _, inputs, kernel, _ = weight.shape
    split = weight.reshape(groups, -1, inputs, kernel, kernel)
    packed = split.transpose(0, 3, 4, 2, 1).reshape(groups, kernel * kernel * inputs, -1)
    return np.ascontiguousarray(packed)


def windows(x: Array, window: Window) -> Array:
    """Every window of the padded `x`: a view, (N, Ho, Wo, G, K, K, C/G)."""
    image, row, pixel, number = x.strides
    per_group = x.shape[3] // window.groups
    apart = window.dilation
    return as_strided(
        x,
        (
            len(x),
            window.height,
            window.width,
            window.groups,
            window.kernel,
            window.kernel,
            per_group,
        ),
        (
            image,
            window.stride * row,
            window.stride * pixel,
            per_group * number,
            apart * row,
            apart * pixel,
            number,
        ),
        writeable=False,
    )


def gather(x: Array, window: Window, start: int, stop: int, columns: Array) -> list[Step]:
    """Copy the windows of output rows `start` to `stop` of the batch.

    Parameters
    ----------
    x : (N, Hp, Wp, C) array, with its border of zeros
    columns : ((stop - start) * Wo, G, K * K * C/G) array
    """
    view = windows(x, window)
    target = columns.reshape(stop - start, *view.shape[2:])
    return [
        partial(np.copyto, target[place : place + last - first], view[n, first:last])
        for n, first, last, place in image_runs(start, stop, window.height)
    ]


def finish(
    products: Array, bias: Array, y: Array, start: int, stop: int, *, relu: bool
) -> list[Step]:
    """Bias and ReLU, then output rows `start` to `stop` of the batch into their place.

    Parameters
    ----------
    products : ((stop - start) * Wo, O) array
        Overwritten.
    bias : (W * O,) array, the bias repeated for each pixel of a row
    y : (N, Ho, Wo, O) array
        May be the interior of the next layer's padded input.
    """
    rows = products.reshape(stop - start, y.shape[2], -1)
    beside = bias.reshape(rows.shape[1:])
    steps: list[Step] = []
    for n, first, last, place in image_runs(start, stop, y.shape[1]):
        held, out = rows[place : place + last - first], y[n, first:last]
        if relu:
            steps.append(partial(np.add, held, beside, out=held))
            steps.append(partial(np.maximum, held, 0, out=out))
        else:
            steps.append(partial(np.add, held, beside, out=out))
    return steps
