"""Convolution with its gradients for the table `NUMPY`: NHWC in, NHWC out, on all threads.

    grad_x       stride 1: again a convolution, of grad_y with the kernels turned and transposed;
                 stride 2: four small ones, `phases`;
                 else  columns = grad_y W^T, added back to the pixels that each tap read
    grad_weight  `weight_gradient`, in Winograd's domain or directly

What the fast paths do not cover (kernels that are not square, settings that differ between height
and width) goes to the reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import direct, phases
from repvgg_ref.cpu.convolution.algorithms import Algorithm, make_convolution, tile_of
from repvgg_ref.cpu.convolution.cost import cheapest
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.convolution.weight_gradient import (
    direct_weight_gradient,
    winograd_weight_gradient,
)
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import pool, portion, share_out
from repvgg_ref.errors import ShapeError
from repvgg_ref.ops import REFERENCE, Conv2dGrads, IntOrPair

_MOST_PACKED = 48 << 20  # bytes of transformed weights that are there at once
_FEWEST_CHANNELS = 512  # of a part: fewer make poorer products
_KEPT = 32 << 20  # bytes of memory that evaluation keeps for its next layer


class Geometry(TypedDict):
    """The settings of a convolution."""

    stride: IntOrPair
    padding: IntOrPair
    dilation: IntOrPair
    groups: int


class Conv2dCache(NamedTuple):
    """What the backward pass needs; `padding` is one number."""

    x: Array
    weight: Array
    has_bias: bool
    shape: ConvShape
    padding: int


def conv2d_forward(
    x: Array, weight: Array, bias: Array | None, **geometry: Unpack[Geometry]
) -> tuple[Array, Any]:
    """`ops.conv2d.conv2d_forward` for x (N, H, W, C) and y (N, Ho, Wo, O)."""
    found = _shape(x, weight, bias, **geometry)
    if found is None:
        y, cache = REFERENCE.conv2d_forward(x.transpose(0, 3, 1, 2), weight, bias, **geometry)
        return np.ascontiguousarray(y.transpose(0, 2, 3, 1)), cache
    shape, border = found
    x = np.ascontiguousarray(x)
    y = _convolve(x, weight, bias, shape, border, relu=False)
    return y, Conv2dCache(x, weight, bias is not None, shape, border)


def square_convolution(x: Array, weight: Array, **geometry: Unpack[Geometry]) -> Conv2dCache:
    """The convolution of contiguous x (N, H, W, C) without a bias, for `convolve` and gradients.

    Raises
    ------
    ShapeError
        If the shapes do not fit together, or the kernel is not square.
    """
    found = _shape(x, weight, None, **geometry)
    if found is None:
        REFERENCE.conv2d_forward(x.transpose(0, 3, 1, 2), weight, None, **geometry)  # refuses
        raise ShapeError(
            f"branches: weight.shape[2:] (={weight.shape[2:]}) must be square, "
            f"x.dtype (={x.dtype}) float32 or float64 and weight.dtype (={weight.dtype}) the same"
        )
    return Conv2dCache(np.ascontiguousarray(x), weight, False, *found)


def convolve(cache: Conv2dCache) -> Array:
    """The output, (N, Ho, Wo, O), of `square_convolution`."""
    return _convolve(cache.x, cache.weight, None, cache.shape, cache.padding, relu=False)


def window_of(cache: Conv2dCache) -> direct.Window:
    """The convolution's windows, for `direct.gather`."""
    return direct.window_of(cache.shape, cache.padding)


def conv_bias_relu(
    x: Array, weight: Array, bias: Array | None, /, **geometry: Unpack[Geometry]
) -> Array:
    """`Ops.conv_bias_relu_forward`, bias and ReLU while the block is in cache."""
    found = _shape(x, weight, bias, **geometry)
    if found is None:
        y, _ = conv2d_forward(x, weight, bias, **geometry)
        return np.maximum(y, 0)
    y = _convolve(np.ascontiguousarray(x), weight, bias, *found, relu=True)
    memory.IDLE.keep(_KEPT)  # the next layer is of another size, and only evaluation comes here
    return y


def conv2d_backward(grad_y: Array, cache: Any) -> Conv2dGrads:
    """`ops.conv2d.conv2d_backward` for NHWC arrays."""
    if not isinstance(cache, Conv2dCache):
        grads = REFERENCE.conv2d_backward(grad_y.transpose(0, 3, 1, 2), cache)
        return grads._replace(grad_x=np.ascontiguousarray(grads.grad_x.transpose(0, 2, 3, 1)))
    grad_y = np.ascontiguousarray(grad_y)
    grad_bias = grad_y.sum(axis=(0, 1, 2)) if cache.has_bias else None
    return Conv2dGrads(input_gradient(grad_y, cache), weight_gradient(grad_y, cache), grad_bias)


def input_gradient(grad_y: Array, cache: Conv2dCache) -> Array:
    """Gradient with respect to x, (N, H, W, C)."""
    shape = cache.shape
    reach = shape.dilation * (shape.kernel - 1) - cache.padding
    if phases.fits(shape, cache.padding):
        grad_x = memory.empty(cache.x.shape, grad_y.dtype)
        with pool().session():
            phases.stride_2_input_gradient(grad_y, cache.weight, shape, grad_x, pool())
        return grad_x
    if shape.stride > 1 or reach < 0:
        return _scattered(grad_y, cache)
    turned = _turned(cache.weight, shape.groups)
    height, width = cache.x.shape[1:3]
    back = replace(
        shape, height=height, width=width, channels=shape.outputs, outputs=shape.channels
    )
    return _convolve(grad_y, turned, None, back, reach, relu=False)


def weight_gradient(grad_y: Array, cache: Conv2dCache) -> Array:
    """Gradient with respect to the kernels, (O, C/G, K, K)."""
    shape, threads = cache.shape, pool()
    algorithm = _algorithm(cache.x.dtype, shape, "gradient")
    with threads.session():
        if algorithm == "direct":
            return direct_weight_gradient(cache.x, grad_y, window_of(cache), threads)
        m = tile_of(algorithm)
        return winograd_weight_gradient(cache.x, grad_y, shape, cache.padding, m, threads)


def _shape(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: IntOrPair,
    padding: IntOrPair,
    dilation: IntOrPair,
    groups: int,
) -> tuple[ConvShape, int] | None:
    """The shape and the border, or None if the reference must do it (or refuse it)."""
    numbers = [_single(setting) for setting in (stride, padding, dilation)]
    fits = (
        None not in numbers
        and x.ndim == weight.ndim == 4
        and groups >= 1
        and x.dtype in (np.float32, np.float64)
        and weight.dtype == x.dtype
        and weight.shape[2] == weight.shape[3]
        and x.shape[3] == weight.shape[1] * groups
        and len(weight) % groups == 0
        and (bias is None or bias.shape == weight.shape[:1])
        and min(x.shape) > 0
    )
    if not fits:
        return None
    step, border, apart = (int(number) for number in numbers if number is not None)
    span = apart * (weight.shape[2] - 1) + 1
    height, width = ((size + 2 * border - span) // step + 1 for size in x.shape[1:3])
    if min(height, width, step, apart) < 1 or border < 0:
        return None
    channels, outputs, kernel = x.shape[3], len(weight), weight.shape[2]
    return (
        ConvShape(len(x), height, width, channels, outputs, kernel, step, apart, groups),
        border,
    )


def _single(setting: IntOrPair) -> int | None:
    if isinstance(setting, tuple):
        return setting[0] if len(set(setting)) == 1 else None
    return setting


def _convolve(
    x: Array, weight: Array, bias: Array | None, shape: ConvShape, border: int, *, relu: bool
) -> Array:
    algorithm = _algorithm(x.dtype, shape, "training")
    parts = _parts(shape, algorithm, x.itemsize)
    if parts == 1:
        return _convolve_whole(x, weight, bias, shape, border, algorithm, relu=relu)
    y: Array | None = None
    for k in range(parts):
        mine = portion(shape.channels, k, parts)
        some = slice(mine.start, mine.stop)
        seen, kernel = np.ascontiguousarray(x[..., some]), weight[:, some]
        its = replace(shape, channels=len(mine))
        if y is None:
            y = _convolve_whole(seen, kernel, bias, its, border, algorithm, relu=False)
        else:
            y += _convolve_whole(seen, kernel, None, its, border, algorithm, relu=False)
    assert y is not None
    return np.maximum(y, 0, out=y) if relu else y


def _parts(shape: ConvShape, algorithm: Algorithm, itemsize: int) -> int:
    """Into how many parts of its channels a convolution is cut, whose sum it is.

    Transformed weights are t * t / 9 times as many; those of a PSPNet's head would be 190 MB.
    """
    if algorithm == "direct" or shape.stride > 1 or shape.groups > 1:
        return 1
    packed = (tile_of(algorithm) + 2) ** 2 * shape.pairs * itemsize
    return min(-(-packed // _MOST_PACKED), shape.channels // _FEWEST_CHANNELS) or 1


def _convolve_whole(
    x: Array,
    weight: Array,
    bias: Array | None,
    shape: ConvShape,
    border: int,
    algorithm: Algorithm,
    *,
    relu: bool,
) -> Array:
    threads = pool()
    y = memory.empty((shape.images, shape.height, shape.width, shape.outputs), x.dtype)
    with threads.session():
        convolution = make_convolution(shape, weight, algorithm, threads.threads, {}, "", threads)
        arena = memory.empty((convolution.scratch,), x.dtype)
        for stage in convolution.stages(x, y, bias, arena, relu=relu, border=border):
            threads.run(stage)
    return y


def _algorithm(dtype: Any, shape: ConvShape, purpose: Literal["training", "gradient"]) -> Algorithm:
    return "direct" if dtype == np.float64 else cheapest(shape, dtype.itemsize, purpose=purpose)


def _turned(weight: Array, groups: int) -> Array:
    """Kernels turned by half a turn, inputs and outputs exchanged: (C, O/G, K, K)."""
    outputs, inputs, *kernel = weight.shape
    split = weight.reshape(groups, outputs // groups, inputs, *kernel).swapaxes(1, 2)
    return split[..., ::-1, ::-1].reshape(groups * inputs, outputs // groups, *kernel)


def _scattered(grad_y: Array, cache: Conv2dCache) -> Array:
    """``columns = grad_y W^T``, each added back to the pixel that its tap read; by images."""
    shape, window = cache.shape, window_of(cache)
    grad_x = np.zeros_like(cache.x, order="C")
    packed = direct.pack_weight(cache.weight, shape.groups).swapaxes(1, 2)  # (G, O/G, K K C/G)
    size = shape.height * shape.width, shape.groups, packed.shape[2]

    def scatter(worker: int, n: int) -> None:
        columns = np.empty(size, grad_y.dtype)
        rows = grad_y[n].reshape(size[0], shape.groups, -1).transpose(1, 0, 2)
        # (G, Ho * Wo, K K C/G) = (G, Ho * Wo, O/G) @ (G, O/G, K K C/G)
        np.matmul(rows, packed, out=columns.transpose(1, 0, 2))
        direct.add_back(columns, window, range(shape.height), grad_x[n])

    share_out(shape.images, scatter)
    return grad_x
