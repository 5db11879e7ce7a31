"""Convolution and its two adjoints as sums of products; a convolution's gradients are such too."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ShapeError
from repvgg_ref.ops.conv2d import Conv2dCache, Pair, conv2d_backward, conv2d_forward
from repvgg_ref.oracle.operators.operator import Arrays, Expected, Settings
from repvgg_ref.oracle.operators.rounding import (
    Approx,
    Product,
    Rounding,
    dot,
    exact,
    masked,
    total,
)
from repvgg_ref.oracle.programs.block import BlockProgram

_OVER_PIXELS = (0, 2, 3)


def pair(value: object) -> Pair:
    """A setting as (height, width)."""
    if isinstance(value, tuple | list):
        height, width = value
        return int(height), int(width)
    return int(value), int(value)  # type: ignore[call-overload]


def geometry(settings: Settings) -> dict[str, object]:
    """The settings that `ops.conv2d` takes."""
    pairs = {name: pair(settings[name]) for name in ("stride", "padding", "dilation")}
    return {**pairs, "groups": int(settings["groups"])}


def convolved(settings: Settings) -> Product:
    """``x, weight -> y``."""
    g = geometry(settings)
    return lambda x, weight: conv2d_forward(x, weight, None, **g)[0]  # type: ignore[arg-type]


def sent_back(settings: Settings, x_shape: tuple[int, ...]) -> Product:
    """``grad_y, weight -> grad_x``."""
    nothing = np.zeros(x_shape)
    return lambda grad, weight: conv2d_backward(grad, _cache(nothing, weight, settings)).grad_x


def correlated(settings: Settings, weight_shape: tuple[int, ...]) -> Product:
    """``grad_y, x -> grad_weight``."""
    nothing = np.zeros(weight_shape)
    return lambda grad, x: conv2d_backward(grad, _cache(x, nothing, settings)).grad_weight


def _cache(x: Array, weight: Array, settings: Settings) -> Conv2dCache:
    return Conv2dCache(x, weight, False, **geometry(settings))  # type: ignore[arg-type]


def conv_forward(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    """The convolution with its bias, if there is one."""
    x, weight = exact(arrays["x"]), exact(arrays["weight"])
    bias = arrays.get("bias")
    start = None if bias is None else np.asarray(bias, np.float64)[:, None, None]
    return {"y": dot(convolved(settings), x, weight, r, start)}


def conv_backward(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    """Gradients of x, weight and bias."""
    return conv_grads(exact(arrays["grad_y"]), arrays, settings, r)


def conv_bias_relu_backward(arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    """The same behind a ReLU, which lets nothing through where its input is 0 or less."""
    z = conv_forward(arrays, settings, r)["y"]
    grad = exact(arrays["grad_y"])
    if grad.value.shape != z.value.shape:
        raise ShapeError(
            f"grad_y.shape (={grad.value.shape}) must equal y.shape (={z.value.shape})"
        )
    return conv_grads(masked(grad, z), arrays, settings, r)


def conv_grads(grad: Approx, arrays: Arrays, settings: Settings, r: Rounding) -> Expected:
    """Gradients of one convolution, from that of its output."""
    x, weight = exact(arrays["x"]), exact(arrays["weight"])
    return {
        "grad_x": dot(sent_back(settings, x.value.shape), grad, weight, r),
        "grad_weight": dot(correlated(settings, weight.value.shape), grad, x, r),
        "grad_bias": total(grad, _OVER_PIXELS, r),
    }


def conv_program(arrays: Arrays, settings: Settings, activation: str) -> BlockProgram | None:
    """The convolution as a fused block; None where stride or dilation differ by axis."""
    (stride, across), (down, right), (dilation, wide) = (
        pair(settings[name]) for name in ("stride", "padding", "dilation")
    )
    weight = np.asarray(arrays["weight"], np.float64)
    if stride != across or dilation != wide:
        return None
    groups = int(settings["groups"])
    bias = arrays.get("bias")
    shift = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    kernel = max(weight.shape[2:])
    spec = BlockSpec(
        "y",
        arrays["x"].shape[1],
        len(weight),
        stride,
        groups,
        dilation,
        kind="plain",
        kernel=kernel,
        activation="none",
    )
    return BlockProgram(
        spec,
        {},
        0.0,
        FusedConv(weight, shift),
        stride=stride,
        dilation=dilation,
        groups=groups,
        size=(weight.shape[2], weight.shape[3]),
        pads=(down, right, down, right),
        activation=activation,
    )
