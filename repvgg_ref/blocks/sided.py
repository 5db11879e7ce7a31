"""What graphs of other libraries have, and blocks of torch have not: constructors of the algebra.

Padding may differ between the two ends of an axis (TensorFlow's SAME pads a stride of 2 on one side
only), or be negative, which crops; a tensor may be divided by a constant, whose reciprocal no float
holds; and terms of a sum may be of one size on these images without being so on all.

The border law in `form.compose` looks for taps above and on the left. Whoever puts a `SidedConv`
that is padded below or on the right behind something has to ask its `reads_outside`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.blocks.constructors import Scale, spread
from repvgg_ref.blocks.form import Form, Pair
from repvgg_ref.blocks.linear import Conv, Sum
from repvgg_ref.blocks.run import Reader, Run
from repvgg_ref.blocks.selfcheck import Response, respond_after


@dataclass(frozen=True)
class SidedConv(Conv):
    """A convolution (rule 1) with `padding` on top and left, `ends` below and right."""

    ends: Pair = (0, 0)

    @property
    def growth(self) -> Pair:
        """Of the image, before the stride."""
        axes = zip(self.padding, self.ends, self.dilation, self.kernel, strict=True)
        rows, columns = (begin + end - d * (k - 1) for begin, end, d, k in axes)
        return rows, columns

    @property
    def reads_outside(self) -> bool:
        """Whether its padding is read."""
        return max(*self.padding, *self.ends) > 0

    @property
    def settings(self) -> dict[str, Any]:
        """How an operator convolves the image that is padded already."""
        return {**super().settings, "padding": 0}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = W * x + b``, zeros around x."""
        y, cache = super().forward(self._framed(x, run), run)
        return y, (cache, x.shape)

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """As `conv2d_backward`, less the border."""
        within, shape = cache
        grad = super().backward(grad_y, within, run)
        kept, there = self._overlap(shape, run)
        grad_x = array_module(grad).zeros(shape, grad.dtype)
        grad_x[there] = grad[kept]
        return grad_x  # type: ignore[no-any-return]

    def _framed(self, x: Array, run: Run) -> Array:
        """`x` with the padding around it."""
        kept, there = self._overlap(x.shape, run)
        shape = list(x.shape)
        for axis, begin, end in zip(self._axes(run), self.padding, self.ends, strict=True):
            shape[axis] += begin + end
        framed = array_module(x).zeros(tuple(shape), x.dtype)
        framed[kept] = x[there]
        return framed  # type: ignore[no-any-return]

    def _axes(self, run: Run) -> Pair:
        return (1, 2) if run.ops.layout == "NHWC" else (2, 3)

    def _overlap(
        self, shape: tuple[int, ...], run: Run
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where the image lies in the padded one, and what of the image does."""
        kept, there = [slice(None)] * 4, [slice(None)] * 4
        for axis, begin, end in zip(self._axes(run), self.padding, self.ends, strict=True):
            first, stop = max(-begin, 0), shape[axis] - max(-end, 0)
            there[axis] = slice(first, stop)
            kept[axis] = slice(first + begin, stop + begin)
        return tuple(kept), tuple(there)


@dataclass(frozen=True)
class Quotient(Scale):
    """Divided by a number a channel, or by one number; follows in a `Chain`."""

    starts = property(lambda self: {self.name: 1.0})

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = x / v``."""
        v = run.params[self.name]
        y: Array = x / run.on_channels(v.reshape(() if v.size == 1 else -1))
        return y, y

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """``grad_v = -sum(grad_y y) / v``, ``grad_x = grad_y / v``."""
        v = run.params[self.name]
        summed = -run.over_pixels(grad_y * cache)
        total = summed.sum() if v.size == 1 else summed
        run.add_grad(self.name, total.reshape(v.shape) / v)
        grad_x: Array = grad_y / run.on_channels(v.reshape(() if v.size == 1 else -1))
        return grad_x

    def after(self, form: Form, read: Reader, rows: slice) -> Form:
        """Kernel and bias divided by v: its reciprocal is rounded, and the product."""
        return form.scaled(1 / spread(self, read, rows, len(form.bias)), roundings=2)


class SameSize(Sum):
    """A `Sum` whose terms are of one size on the images at hand, as somebody has made sure."""

    alike: ClassVar[tuple[str, ...]] = ("in_channels", "stride", "out_channels")


@respond_after.register
def _(last: Quotient, seen: Response, read: Reader, rows: slice) -> Response:
    v = spread(last, read, rows, len(seen.value))[:, None]
    return Response(seen.value / v, seen.size / np.abs(v))
