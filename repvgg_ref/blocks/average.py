"""Average pooling: a convolution of one group a channel (rule 3), by adding shifted images."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.blocks.constructors import FormulaConv
from repvgg_ref.blocks.form import Pair
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.run import Reader, Run, Shapes
from repvgg_ref.errors import NotFusibleError


@dataclass(frozen=True)
class Average:
    """The mean over a window, channel by channel: every tap is 1 / (Kh Kw)."""

    channels: int
    window: Pair

    starts = property(lambda self: {})

    def shapes(self) -> Shapes:
        """Nothing."""
        return {}

    def kernel(self, read: Reader, rows: slice) -> tuple[Array, Array, int]:
        """(C, 1, Kh, Kw)."""
        count = len(range(self.channels)[rows])
        tap = Fraction(1, prod(self.window)) if read.exact else 1 / prod(self.window)
        kernel = np.full((count, 1, *self.window), tap)
        return kernel, kernel, 1

    def weight(self, x: Array, run: Run) -> Array:
        """All channels'."""
        kernel = self.kernel(Reader({}, run.eps, x.dtype == object), slice(None))[0]
        return array_module(x).asarray(kernel).astype(x.dtype)  # type: ignore[no-any-return]

    def gradients(self, grad_weight: Array, run: Run) -> dict[str, Array]:
        """Nothing is trained."""
        return {}


@dataclass(frozen=True)
class AvgPool(FormulaConv):
    """`FormulaConv` of an `Average`, row by row and column by column in place of a convolution."""

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """Sums over columns of sums over rows, then the division."""
        sizes = []
        for axis, k, s, p in self._axes(run):
            sizes.append(x.shape[axis])
            x = _padded(x, axis, p)
            count = (x.shape[axis] - k) // s + 1
            shifted = [x[_at(axis, i, s, count)] for i in range(k)]
            x = sum(shifted[1:], start=shifted[0])
        y: Array = x * self._tap(x)
        return y, sizes

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Every pixel gets its share of the windows that it was in."""
        grad: Array = grad_y * self._tap(grad_y)
        for (axis, k, s, p), size in zip(reversed(self._axes(run)), reversed(cache), strict=True):
            count = grad.shape[axis]
            shape = [*grad.shape[:axis], size + 2 * p, *grad.shape[axis + 1 :]]
            wide = array_module(grad).zeros(tuple(shape), grad.dtype)
            for i in range(k):
                wide[_at(axis, i, s, count)] += grad
            grad = wide[_at(axis, p, 1, size)]
        return grad

    def _axes(self, run: Run) -> list[tuple[int, int, int, int]]:
        """Axis, window, stride and padding, of rows and of columns."""
        first = 1 if run.ops.layout == "NHWC" else 2
        both = zip(self.conv.kernel, self.conv.stride, self.conv.padding, strict=True)
        return [(first + n, *each) for n, each in enumerate(both)]

    def _tap(self, x: Array) -> Any:
        count = prod(self.conv.kernel)
        return Fraction(1, count) if x.dtype == object else x.dtype.type(1 / count)


def _at(axis: int, start: int, step: int, count: int) -> tuple[slice, ...]:
    """So many places along an axis."""
    chosen = slice(start, start + step * (count - 1) + 1, step)
    return (*(slice(None),) * axis, chosen)


def _padded(x: Array, axis: int, width: int) -> Array:
    """Zeros before and after."""
    if not width:
        return x
    around = [(width, width) if n == axis else (0, 0) for n in range(x.ndim)]
    return array_module(x).pad(x, around)  # type: ignore[no-any-return]


def avg_pool(
    channels: int, window: Pair, stride: Pair, padding: Pair, *, padding_counted: bool = True
) -> AvgPool:
    """Average pooling (rule 3): a convolution with one group a channel.

    Raises
    ------
    NotFusibleError
        If pixels of padding are not counted: the divisor then depends on the place.
    """
    if not padding_counted and max(padding) > 0:
        raise NotFusibleError(
            "an average that does not count its padding divides by another number at the border",
            got=f"padding {padding}, not counted",
            wanted="padding 0, or count_include_pad",
        )
    conv = Conv("", channels, channels, window, stride, padding, groups=channels)
    return AvgPool(conv, Average(channels, window))
