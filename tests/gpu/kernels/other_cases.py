"""Cases of everything but the three-branch block."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.gpu.geometry import Geometry
from repvgg_ref.ops import REFERENCE
from tests.gpu.kernels.cases import Array, Case, Check, Data, fetch, kernels, real, stored, unit

# (N, H, W, C), groups, kernel, stride, padding, dilation
CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "3x3": ((2, 7, 6, 16), 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3 stride 2": ((2, 7, 6, 16), 1, (3, 3), (2, 2), (1, 1), (1, 1)),
    "3x3 of 3 channels": ((1, 5, 8, 3), 1, (3, 3), (2, 2), (1, 1), (1, 1)),
    "2 groups": ((2, 5, 5, 32), 2, (3, 3), (1, 1), (1, 1), (1, 1)),
    "2 narrow groups": ((2, 5, 5, 6), 2, (3, 3), (2, 2), (1, 1), (1, 1)),
    "1x1 stride 2": ((2, 5, 4, 16), 1, (1, 1), (2, 2), (0, 0), (1, 1)),
    "dilation": ((1, 9, 8, 8), 1, (3, 2), (1, 2), (2, 1), (2, 3)),
    "more than a block": ((1, 4, 3, 270), 1, (3, 3), (1, 1), (1, 1), (1, 1)),
}


def im2col(cupy: Any, dtype: Any, *, setting: tuple[Any, ...]) -> Iterator[Check]:
    gpu = kernels()

    x, wide = Data(cupy, 11).normal(setting[0], dtype)
    got = gpu.im2col(x, _sizes(setting))
    yield Check("columns", fetch(got), _columns(wide, setting), 0)


def col2im(cupy: Any, dtype: Any, *, setting: tuple[Any, ...]) -> Iterator[Check]:
    """The transpose: <gpu.im2col(x), columns> = <x, gpu.col2im(columns)> for each unit vector x."""
    gpu = kernels()

    sizes, shape, kernel = _sizes(setting), setting[0], setting[2]
    columns, wide = Data(cupy, 12).normal(sizes.columns_shape, dtype)
    got = gpu.col2im(columns, sizes)
    # Where each column comes from: im2col of the pixels' numbers, 0 for the padding.
    numbers = np.arange(1.0, np.prod(shape) + 1).reshape(shape)
    places = _columns(numbers, setting).astype(int).ravel()
    sums, magnitudes = (
        np.bincount(places, values.ravel(), numbers.size + 1)[1:].reshape(shape)
        for values in (wide, np.abs(wide))
    )
    bound = 2 * kernel[0] * kernel[1] * unit(dtype) * magnitudes + stored(dtype, sums) * 1.01
    yield Check("grad_x", fetch(got), sums, bound)


def convolution(cupy: Any, dtype: Any) -> Iterator[Check]:
    """Columns times weights is the reference's convolution."""
    gpu = kernels()

    setting = CONVOLUTIONS["2 groups"]
    shape, groups, kernel, stride, padding, dilation = setting
    data = Data(cupy, 13)
    x, wide = data.normal(shape, dtype)
    O, Cg = 6, shape[3] // groups  # noqa: E741 - the field's letter
    weight = data.rng.standard_normal((O, Cg, *kernel))
    columns = fetch(gpu.im2col(x, _sizes(setting))).astype(np.float64)
    # (groups, O / G, Cg, Kh, Kw) -> (groups, Kh * Kw * Cg, O / G)
    matrices = weight.reshape(groups, -1, Cg, *kernel).transpose(0, 3, 4, 2, 1)
    got = columns @ matrices.reshape(groups, -1, O // groups)
    y, _ = REFERENCE.conv2d_forward(
        wide.transpose(0, 3, 1, 2),
        weight,
        None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    # (N, O, Ho, Wo) -> (groups, N * Ho * Wo, O / G)
    wanted = y.transpose(1, 0, 2, 3).reshape(groups, O // groups, -1).transpose(0, 2, 1)
    yield Check("y", got, wanted, 1e-12)


def bias_relu(
    cupy: Any, dtype: Any, *, shape: tuple[int, ...], wide: bool, relu: bool
) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 14)
    y, y_wide = data.normal(shape, dtype)
    bias, b = data.normal(shape[-1:], real(dtype) if wide else dtype)
    wanted = y_wide + b
    wanted = np.maximum(wanted, 0) if relu else wanted
    assert gpu.bias_relu(y, bias, relu=relu) is y
    size = np.abs(y_wide) + np.abs(b)
    yield Check("y", fetch(y), wanted, 2 * unit(dtype) * size + stored(dtype, wanted) * 1.01)


def relu_alone(cupy: Any, dtype: Any) -> Iterator[Check]:
    """NaN passes, as through the reference."""
    gpu = kernels()

    host = np.array([[-1, 0, 2, np.nan, np.inf, -np.inf, 1, -2]], dtype)
    y, _ = Data(cupy, 15).put(host)
    got = fetch(gpu.bias_relu(y, None))
    wanted, _ = REFERENCE.relu_forward(host.astype(np.float64))
    same = (got.astype(np.float64) == wanted) | (np.isnan(got) & np.isnan(wanted))
    yield Check("same", same.astype(float), np.ones(same.shape), 0)


def spatial_sums(
    cupy: Any, dtype: Any, *, shape: tuple[int, ...], factored: bool, mean: bool
) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 16)
    (x, a), (factor, b) = (data.normal(shape, dtype) for _ in range(2))
    terms = a * b if factored else a
    share = 1 / (shape[1] * shape[2]) if mean else 1.0
    wanted, size = terms.sum((1, 2)) * share, np.abs(terms).sum((1, 2)) * share
    got = fetch(gpu.spatial_sums(x, factor if factored else None, mean=mean))
    yield Check("sums", got, wanted, 2 * shape[1] * shape[2] * unit(dtype) * size)


def pooling(cupy: Any, dtype: Any) -> Iterator[Check]:
    gpu = kernels()

    data, shape = Data(cupy, 17), (3, 5, 4, 24)
    x, wide = data.normal(shape, dtype)
    wanted, cache = REFERENCE.global_avg_pool_forward(wide.transpose(0, 3, 1, 2))
    bound = 40 * unit(dtype) * np.abs(wide).mean((1, 2))
    yield Check("y", fetch(gpu.spatial_sums(x, mean=True)), wanted, bound)
    grad_y, g = data.normal((3, 24), real(dtype))
    grad_x = REFERENCE.global_avg_pool_backward(g, cache).transpose(0, 2, 3, 1)
    got = fetch(gpu.spread_over_pixels(grad_y / 20, shape=shape, dtype=dtype))
    yield Check("grad_x", got, grad_x, 4 * unit(dtype) * np.abs(grad_x) + stored(dtype, grad_x))


def scale_channels(
    cupy: Any, dtype: Any, *, shape: tuple[int, ...], shifted: bool
) -> Iterator[Check]:
    gpu = kernels()

    data = Data(cupy, 18)
    x, a = data.normal(shape, dtype)
    (scale, s), (shift, t) = (data.normal((shape[0], shape[3]), real(dtype)) for _ in range(2))
    s, t = s[:, None, None], t[:, None, None] * shifted
    wanted = a * s + t
    got = fetch(gpu.scale_channels(x, scale, shift if shifted else None))
    bound = 4 * unit(dtype) * (np.abs(a * s) + np.abs(t)) + stored(dtype, wanted) * 1.01
    yield Check("y", got, wanted, bound)


def _sizes(setting: tuple[Any, ...]) -> Geometry:
    (N, H, W, C), groups, kernel, stride, padding, dilation = setting
    return Geometry(N, (H, W), C, groups, kernel, stride, padding, dilation, groups)


def _columns(x: Array, setting: tuple[Any, ...]) -> Array:
    """The columns of `x`, by slicing the padded array once for each tap."""
    (N, H, W, C), groups, kernel, stride, padding, dilation = setting
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    Ho, Wo = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((H, W), padding, dilation, kernel, stride, strict=True)
    )
    taps = [
        padded[
            :,
            kh * dilation[0] : kh * dilation[0] + stride[0] * (Ho - 1) + 1 : stride[0],
            kw * dilation[1] : kw * dilation[1] + stride[1] * (Wo - 1) + 1 : stride[1],
        ]
        for kh in range(kernel[0])
        for kw in range(kernel[1])
    ]
    # (taps, N, Ho, Wo, G, Cg) -> (G, N, Ho, Wo, taps, Cg)
    stacked = np.stack(taps).reshape(len(taps), N, Ho, Wo, groups, C // groups)
    return stacked.transpose(4, 1, 2, 3, 0, 5).reshape(groups, N * Ho * Wo, -1)


CASES: dict[str, Case] = {
    "convolution": convolution,
    "ReLU alone": relu_alone,
    "pooling": pooling,
}
for _name, _setting in CONVOLUTIONS.items():
    CASES[f"im2col {_name}"] = partial(im2col, setting=_setting)
    CASES[f"col2im {_name}"] = partial(col2im, setting=_setting)
for _shape in ((2, 3, 5, 16), (1, 4, 3, 7)):
    for _flag in (False, True):
        CASES[f"bias_relu {_shape} {_flag}"] = partial(
            bias_relu, shape=_shape, wide=_flag, relu=not _flag
        )
        CASES[f"spatial_sums {_shape} {_flag}"] = partial(
            spatial_sums, shape=_shape, factored=_flag, mean=not _flag
        )
        CASES[f"scale_channels {_shape} {_flag}"] = partial(
            scale_channels, shape=_shape, shifted=_flag
        )
CASES["bias_relu of a tile that is not full"] = partial(
    bias_relu, shape=(1, 3, 3, 280), wide=True, relu=True
)
CASES["scale_channels of a tile that is not full"] = partial(
    scale_channels, shape=(2, 3, 3, 280), shifted=True
)
CASES["spatial_sums of many rows"] = partial(
    spatial_sums, shape=(2, 13, 13, 280), factored=True, mean=True
)
