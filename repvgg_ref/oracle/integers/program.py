"""How a device computes one integer layer, in parts that a bug can change.

`Sums` is what happens before the multiplier, `Finish` what happens after it. Together they are
`IntegerLayer.forward` spelled out; unlike it they can also be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.scaling import Scaling
from repvgg_ref.integer.schemes import SCHEMES
from repvgg_ref.ops.conv2d import conv2d_forward

Pads = tuple[tuple[int, int], tuple[int, int]]  # above and below, left and right
Outside = Literal["saturate", "wrap", "wrap-above"]  # before ReLU, or behind it


@dataclass(frozen=True, eq=False)
class Sums:
    """From a layer's input to its accumulators.

    Attributes
    ----------
    weight, bias : int64 arrays, shapes (O, C/G, K, K) and (O,)
    subtracted : int
        The input's zero point as the device subtracts it.
    padded : int
        What stands in the padding, before the zero point is subtracted.
    pads : pairs of int
    narrow : callable, optional
        What the device's registers make of the exact sums.
    products : callable, optional
        Sums in place of the exact ones, from (columns, rows): see `products`.
    """

    weight: Array
    bias: Array
    subtracted: int
    padded: int
    pads: Pads
    stride: int
    dilation: int
    groups: int
    narrow: Callable[[Array], Array] | None = None
    products: Callable[[Array, Array], Array] | None = None

    def of(self, x: Array) -> Array:
        """Accumulators (N, O, Ho, Wo) of int64 for numbers (N, C, H, W)."""
        padded = np.pad(
            x.astype(np.int64), ((0, 0), (0, 0), *self.pads), constant_values=self.padded
        )
        if self.products is not None:
            sums = self.products(padded, self.weight)
        else:
            y, _ = conv2d_forward(
                (padded - self.subtracted).astype(np.float64),
                self.weight.astype(np.float64),
                None,
                stride=self.stride,
                padding=0,
                dilation=self.dilation,
                groups=self.groups,
            )
            sums = y.astype(np.int64)
        sums = sums + self.bias[:, None, None]
        return sums if self.narrow is None else self.narrow(sums)


@dataclass(frozen=True, eq=False)
class Finish:
    """From accumulators to 8-bit numbers.

    `added` is the output's zero point as the device adds it, `low` and `high` where it clips, and
    `order` the channel that stands in each place.
    """

    scaling: Scaling
    rounding: str
    added: int
    low: int
    high: int
    dtype: np.dtype[np.integer]
    outside: Outside = "saturate"
    order: Array | None = None

    def of(self, sums: Array) -> Array:
        """Numbers of `dtype`, shape as `sums`."""
        scale = self.scaling.across(sums.ndim)
        y: Array = SCHEMES[self.rounding].requantize(sums, scale) + self.added
        if self.outside == "saturate":
            y = np.minimum(y, self.high)
        if self.outside == "wrap":
            y = y.astype(self.dtype)
        y = np.maximum(y, self.low).astype(self.dtype)
        return y if self.order is None else y[:, self.order]


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """A layer as a device computes it; `layer` is the one that it should compute."""

    layer: IntegerLayer
    sums: Sums
    finish: Finish
    flat: bool = False  # features (N, C) in and out

    def with_rounding(self, rounding: str) -> IntegerProgram:
        """The same with another scheme."""
        return replace(self, finish=replace(self.finish, rounding=rounding))


@dataclass
class Sheet:
    """Accumulators of programs on one input, computed once for all that share them."""

    x: Array
    _known: dict[int, tuple[Sums, Array]] = field(default_factory=dict)

    def numbers(self, program: IntegerProgram) -> Array:
        """What the program gives; features stay (N, O, 1, 1)."""
        return program.finish.of(self.sums(program.sums))

    def sums(self, sums: Sums) -> Array:
        """Accumulators; held with their program, so that its id stays its own."""
        if id(sums) not in self._known:
            self._known[id(sums)] = (sums, sums.of(self.x))
        return self._known[id(sums)][1]


def program_of(layer: IntegerLayer, rounding: str, extent: tuple[int, ...]) -> IntegerProgram:
    """`layer` as it should be computed on images of this `extent` (C, H, W).

    Pooling is a convolution of each channel by ones, as large as the image is.
    """
    limits = np.iinfo(layer.output.dtype)
    zero_in, zero_out = int(layer.input.zero_point), int(layer.output.zero_point)
    finish = Finish(
        layer.scaling(extent[1] * extent[2]),
        rounding,
        zero_out,
        zero_out if layer.relu else int(limits.min),
        int(limits.max),
        layer.output.dtype,
    )
    weight, bias, groups = _arrays(layer, extent)
    pad = (layer.padding, layer.padding)
    sums = Sums(
        weight.astype(np.int64),
        bias.astype(np.int64),
        zero_in,
        zero_in,
        (pad, pad),
        layer.stride,
        layer.dilation,
        groups,
    )
    return IntegerProgram(layer, sums, finish, layer.kind != "conv")


def _arrays(layer: IntegerLayer, extent: tuple[int, ...]) -> tuple[Array, Array, int]:
    """Kernel, bias and groups of the convolution that the layer is."""
    if layer.weight is None or layer.bias is None:
        channels = extent[0]
        return np.ones((channels, 1, *extent[1:])), np.zeros(channels), channels
    if layer.kind == "linear":
        return layer.weight[:, :, None, None], layer.bias, 1
    return layer.weight, layer.bias, layer.groups


def as_images(x: Array) -> Array:
    """Features (N, C) as images of one pixel; images as they are."""
    return x if x.ndim == 4 else x[:, :, None, None]
