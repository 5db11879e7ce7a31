"""A convolution of a training step, its kernel square or a line: output and gradients."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution import conv2d
from repvgg_ref.cpu.convolution.conv2d import Conv2dCache
from repvgg_ref.cpu.training import lines
from repvgg_ref.cpu.training.lines import Line

Convolution = Conv2dCache | Line


class Geometry(NamedTuple):
    """How kernels meet x; without a padding they are centred, a single one need not be."""

    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: int | None = None


def is_line(kernel: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether kernels of this size, at this geometry, are convolved as lines."""
    stride, _, groups, _ = geometry
    return kernel[0] != kernel[1] and 1 in kernel and stride == groups == 1


def convolution_of(x: Array, weight: Array, geometry: Geometry) -> Convolution:
    """The convolution of contiguous x (N, H, W, C) with a square kernel, or a line."""
    stride, dilation, groups, padding = geometry
    rows, columns = weight.shape[2:]
    if rows != columns:
        return Line(x, weight, dilation)
    if rows == 1:  # a step between its taps that it does not have
        dilation = 1
    border = rows // 2 * dilation if padding is None else padding
    return conv2d.square_convolution(
        x, weight, stride=stride, padding=border, dilation=dilation, groups=groups
    )


def convolve(conv: Convolution) -> Array:
    """The output, (N, Ho, Wo, O)."""
    return lines.convolve(conv) if isinstance(conv, Line) else conv2d.convolve(conv)


def input_gradient(grad_y: Array, conv: Convolution) -> Array:
    """Gradient with respect to x, (N, H, W, C)."""
    if isinstance(conv, Line):
        return lines.input_gradient(grad_y, conv)
    return conv2d.input_gradient(grad_y, conv)


def weight_gradient(grad_y: Array, conv: Convolution) -> Array:
    """Gradient with respect to the kernels, in their shape."""
    if isinstance(conv, Line):
        return lines.weight_gradient(grad_y, conv)
    return conv2d.weight_gradient(grad_y, conv)
