"""The layers of an integer network: convolution, average pooling, linear; exact until they round.

A layer subtracts the input's zero point, sums, multiplies by M, rounds as its scheme does, adds the
output's zero point and saturates (Jacob et al., arXiv 1712.05877, equations 4 and 7):
``y = clip(zero_point + round(M * accumulator))``. Padding holds the *input zero point*, which is
zero once it is subtracted. ReLU clips at the output's zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.errors import ReportedError, ShapeError, require_equal
from repvgg_ref.integer.scaling import Scaling, scaling
from repvgg_ref.integer.schemes import SCHEMES
from repvgg_ref.ops.conv2d import conv2d_forward

Kind = Literal["conv", "linear", "pool"]
INT32 = np.iinfo(np.int32)
INT8 = np.iinfo(np.int8)


@dataclass(frozen=True, eq=False, slots=True)
class Quantization:
    """What the numbers of a tensor mean: ``real = scale * (number - zero_point)``.

    `scale` is float32; `zero_point` is int8 or uint8, and so are the numbers. Both have shape ().
    """

    scale: Array
    zero_point: Array

    __repr__ = one_line

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Of the numbers."""
        found: np.dtype[np.integer] = self.zero_point.dtype
        return found

    def numbers(self, real: Array) -> Array:
        """``clip(rint(real / scale) + zero_point)``: ONNX's QuantizeLinear, in float32."""
        whole = np.rint(real.astype(np.float32) / self.scale).astype(np.float64)
        return self.saturated(whole + int(self.zero_point))

    def real(self, numbers: Array) -> Array:
        """``scale * (number - zero_point)`` in float32: ONNX's DequantizeLinear."""
        difference = numbers.astype(np.int32) - np.int32(self.zero_point)
        found: Array = difference.astype(np.float32) * self.scale
        return found

    def saturated(self, numbers: Array, *, relu: bool = False) -> Array:
        """Clip to the dtype's range, with `relu` from the zero point upwards."""
        range_ = np.iinfo(self.dtype)
        low = int(self.zero_point) if relu else range_.min
        found: Array = np.clip(numbers, low, range_.max).astype(self.dtype)
        return found


@dataclass(frozen=True, eq=False, slots=True)
class IntegerLayer:
    """One layer; numbers (N, C, H, W) in, numbers out.

    Attributes
    ----------
    kind : {"conv", "linear", "pool"}
        "pool" is the average over all pixels, (N, C, H, W) -> (N, C); it has no weights.
    weight : int8 array, shape (O, C/G, K, K), linear (O, C)
        Less their zero point; int16 where that leaves int8.
    bias : int32 array, shape (O,)
        In units of ``input.scale * weight_scale``.
    weight_scale : float32 array, shape (O,) or ()
    input, output : Quantization
    multiplier, shift : int32 and int8 arrays, shape (O,) or (), optional
        M in fixed point, where the network does not leave it to be derived from the scales.
    weight_zero_point : int64 array, shape (O,) or (), optional
        What was subtracted from asymmetric weights, held as int8 (of uint8 ones 128 less).
    """

    name: str
    kind: Kind
    input: Quantization
    output: Quantization
    weight: Array | None = None
    bias: Array | None = None
    weight_scale: Array | None = None
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    relu: bool = False
    multiplier: Array | None = None
    shift: Array | None = None
    weight_zero_point: Array | None = None

    __repr__ = one_line

    @property
    def in_channels(self) -> int | None:
        """C, or None of a layer that takes any."""
        return None if self.weight is None else int(self.weight.shape[1]) * self.groups

    @property
    def out_channels(self) -> int | None:
        """O, or None of a layer that gives as many as it takes."""
        return None if self.weight is None else len(self.weight)

    @property
    def weight_ends(self) -> tuple[Array, Array]:
        """The least and the largest weight that 8 bits hold, shaped to meet `weight`."""
        assert self.weight is not None
        zero = np.zeros((), np.int64) if self.weight_zero_point is None else self.weight_zero_point
        across = zero.reshape((-1,) + (1,) * (self.weight.ndim - 1)) if zero.ndim else zero
        return np.asarray(INT8.min - across), np.asarray(INT8.max - across)

    def forward(self, x: Array, rounding: str) -> Array:
        """The layer's numbers; `rounding` is a key of `SCHEMES`."""
        return self.finish(self.accumulate(x), rounding, pixels=_pixels(x))

    def accumulate(self, x: Array) -> Array:
        """Exact sums before they are scaled.

        Parameters
        ----------
        x : (N, C, H, W) array, linear (N, C), dtype of `input`

        Returns
        -------
        (N, O, Ho, Wo) or (N, O) array of int64, each within int32

        Raises
        ------
        ReportedError
            If `x` is of another dtype, or a sum needs more than 32 bits: devices differ there.
        """
        if x.dtype != self.input.dtype:
            raise ReportedError(
                f"{self.name}: input of another type",
                got=str(x.dtype),
                wanted=str(self.input.dtype),
            )
        # float64 sums of integers are exact below 2**53, and matrix products of it are fast.
        centred = x.astype(np.float64) - float(self.input.zero_point)
        sums = centred.sum(axis=(2, 3)) if self.kind == "pool" else self._weighted(centred)
        if sums.size and not (INT32.min <= sums.min() and sums.max() <= INT32.max):
            worst = max(sums.max(), -sums.min())
            raise ReportedError(
                f"{self.name}: an accumulator leaves int32",
                got=f"{worst:.0f}",
                wanted=f"at most {INT32.max}; a smaller bias",
            )
        found: Array = sums.astype(np.int64)
        return found

    def finish(self, accumulators: Array, rounding: str, *, pixels: int = 1) -> Array:
        """Scale, round, add the zero point and saturate; `pixels` of an image, for pooling."""
        scale = self.scaling(pixels).across(accumulators.ndim)
        whole = SCHEMES[rounding].requantize(accumulators, scale)
        return self.output.saturated(whole + int(self.output.zero_point), relu=self.relu)

    def scaling(self, pixels: int = 1) -> Scaling:
        """The multipliers; a mean over `pixels` divides by their number, too."""
        if self.kind == "pool":
            denominator = self.output.scale * np.float32(pixels)
            return scaling(self.input.scale, np.ones((), np.float32), denominator)
        assert self.weight_scale is not None
        return scaling(
            self.input.scale,
            self.weight_scale,
            self.output.scale,
            multiplier=self.multiplier,
            shift=self.shift,
        )

    def _weighted(self, centred: Array) -> Array:
        assert self.weight is not None
        assert self.bias is not None
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        if self.kind == "linear":
            require_equal(
                self.name, "x.shape[1:]", centred.shape[1:], "(features,)", weight.shape[1:]
            )
            found: Array = centred @ weight.T + bias  # (N, O) = (N, C) @ (C, O)
            return found
        y, _ = conv2d_forward(
            centred,
            weight,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return y


def _pixels(x: Array) -> int:
    if x.ndim not in (2, 4):
        raise ShapeError("numbers of no layer", got=str(x.shape), wanted="(N, C, H, W) or (N, C)")
    return int(np.prod(x.shape[2:]))
