"""The rest of the algebra's constructors: scales, averages, computed kernels, padding, channels.

`linear` holds what the paper's block needs; these serve its relatives (asymmetric, diverse-branch
and over-parameterised blocks, pre-multiplied identities, weights with a formula).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array, array_module, scalar_like, sqrt
from repvgg_ref.blocks.form import Border, Form, Lattice, Pair, Term, add, ungrouped
from repvgg_ref.blocks.linear import Conv, Norm, Sum
from repvgg_ref.blocks.run import EVERYTHING, NORM_VECTORS, Reader, Run, Shapes
from repvgg_ref.errors import NotFusibleError, ShapeError


@dataclass(frozen=True)
class Scale:
    """Times a number a channel, or one number (rule 4): LayerScale, alpha; follows in a `Chain`.

    With a `row` it is one of several that an array (B, C) holds.
    """

    name: str
    shape: tuple[int, ...]
    row: int | None = None

    starts = property(lambda self: {self.name: 1.0})

    def shapes(self) -> Shapes:
        """The numbers."""
        return {self.name: self.shape}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = v x``."""
        return x * run.on_channels(_vector(self._own(run.params[self.name]))), x

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """``grad_v = sum(grad_y x)``, ``grad_x = v grad_y``."""
        whole = run.params[self.name]
        v = self._own(whole)
        summed = run.over_pixels(grad_y * cache)
        total = (summed.sum() if v.size == 1 else summed).reshape(v.shape)
        if self.row is not None:
            alone, total = total, 0 * whole
            total[self.row] = alone
        run.add_grad(self.name, total)
        grad_x: Array = grad_y * run.on_channels(_vector(v))
        return grad_x

    def _own(self, array: Array) -> Array:
        return array if self.row is None else array[self.row]

    def after(self, form: Form, read: Reader, rows: slice) -> Form:
        """Kernel and bias times v."""
        return form.scaled(spread(self, read, rows, len(form.bias)))


@dataclass(frozen=True)
class Bias:
    """Plus a number a channel, or one number (rule 5); follows in a `Chain`."""

    name: str
    shape: tuple[int, ...]

    starts = property(lambda self: {self.name: 0.0})

    def shapes(self) -> Shapes:
        """The numbers."""
        return {self.name: self.shape}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = x + v``."""
        return x + run.on_channels(_vector(run.params[self.name])), None

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """``grad_v = sum(grad_y)``."""
        summed = run.over_pixels(grad_y)
        total = summed.sum() if prod(self.shape) == 1 else summed
        run.add_grad(self.name, total.reshape(run.params[self.name].shape))
        return grad_y

    def after(self, form: Form, read: Reader, rows: slice) -> Form:
        """Bias plus v."""
        return form.shifted(spread(self, read, rows, len(form.bias)))


class Formula(Protocol):
    """A kernel that is computed (rule 11)."""

    @property
    def starts(self) -> Mapping[str, float]:
        """What its arrays hold before training, but for kernels."""

    def shapes(self) -> Shapes:
        """The arrays that it is computed from."""

    def kernel(self, read: Reader, rows: slice) -> tuple[Array, Array, int]:
        """Some outputs' kernels, a bound of their terms' magnitudes, and the roundings."""

    def weight(self, x: Array, run: Run) -> Array:
        """The kernel for a pass, in the arithmetic of its arrays, or of `x` where it has none."""

    def gradients(self, grad_weight: Array, run: Run) -> dict[str, Array]:
        """Gradients of its arrays, by name."""


@dataclass(frozen=True)
class FormulaConv:
    """A convolution of `conv`'s geometry whose kernel a formula gives."""

    conv: Conv
    formula: Formula

    in_channels = property(lambda self: self.conv.in_channels)
    out_channels = property(lambda self: self.conv.out_channels)
    groups = property(lambda self: self.conv.groups)
    stride = property(lambda self: self.conv.stride)
    growth = property(lambda self: self.conv.growth)
    lattice = property(lambda self: self.conv.lattice)
    name = property(lambda self: self.conv.name)
    starts = property(lambda self: self.formula.starts)

    def shapes(self) -> Shapes:
        """The formula's."""
        return self.formula.shapes()

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = W(arrays) * x``."""
        weight = self.formula.weight(x, run)
        return run.ops.conv2d_forward(x, weight, None, **self.conv.settings)

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Through the convolution, then through the formula."""
        grads = run.ops.conv2d_backward(grad_y, cache)
        for name, grad in self.formula.gradients(grads.grad_weight, run).items():
            run.add_grad(name, grad)
        return grads.grad_x

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """The formula's kernel at the convolution's offsets."""
        kernel, size, roundings = self.formula.kernel(read, rows)
        one = read.ones(len(kernel))
        term = Term(kernel[:, inputs], one, self.conv.lattice, size[:, inputs])
        return Form((term,), 0 * one, 0 * one, self.stride, self.groups, roundings)


class _Bordered:
    """A border of one number a channel (rule 10), in a `Chain`."""

    width: Pair
    growth = property(lambda self: (2 * self.width[0], 2 * self.width[1]))

    def shapes(self) -> Shapes:
        """Nothing of its own."""
        return {}

    def fill(self, run: Run) -> Array:
        """The border's numbers, (C,)."""
        raise NotImplementedError

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """The image, and `fill` around it."""
        first = 1 if run.ops.layout == "NHWC" else 2
        shape = list(x.shape)
        for axis, width in enumerate(self.width, start=first):
            shape[axis] += 2 * width
        y = array_module(x).empty(tuple(shape), x.dtype)
        y[...] = run.on_channels(self.fill(run)).astype(x.dtype)
        y[self._inside(run)] = x
        return y, None

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """What is inside."""
        return grad_y[self._inside(run)]

    def _inside(self, run: Run) -> tuple[slice, ...]:
        (top, left), at = self.width, slice(None)
        rows, columns = slice(top, -top or None), slice(left, -left or None)
        return (at, rows, columns) if run.ops.layout == "NHWC" else (at, at, rows, columns)


@dataclass(frozen=True)
class Pad(_Bordered):
    """A border of what the batch norm before it makes of zero, as in diverse-branch blocks.

    In training it is made of the running statistics as this step leaves them, and is a constant of
    the gradient, as in their code.
    """

    width: Pair
    norm: Norm

    def fill(self, run: Run) -> Array:
        """``beta - mean gamma / sqrt(var + eps)``."""
        gamma, beta, mean, var = (run.params[f"{self.norm.name}.{p}"] for p in NORM_VECTORS)
        seen = run.stats.get(self.norm.name) if run.training else None
        if seen is not None:
            mean, var = run.ops.update_running_stats(
                mean, var, seen.mean, seen.var, momentum=run.momentum, count=seen.pixels
            )
        fill: Array = beta - mean * gamma / sqrt(var + scalar_like(self.norm.eps_in(run), var))
        return fill

    def border(self, read: Reader, rows: slice) -> Border:
        """The same for a fusion."""
        count = len(range(self.norm.channels)[rows])
        zero = 0 * read.ones(count)
        nothing = Form((), zero, zero, (1, 1), 1, 0)
        return Border(self.width, self.norm.after(nothing, read, rows).bias)


@dataclass(frozen=True)
class BiasPad(_Bordered):
    """A border of the bias of the convolution before it, which its gradient goes to as well."""

    width: Pair
    conv: Conv

    _name = property(lambda self: f"{self.conv.name}.bias")

    def fill(self, run: Run) -> Array:
        """The bias."""
        return run.params[self._name]

    def border(self, read: Reader, rows: slice) -> Border:
        """The same for a fusion; zeros where the convolution has no bias."""
        zeros = 0 * read.ones(len(range(self.conv.out_channels)[rows]))
        return Border(self.width, read.vector(self._name, rows) if self.conv.bias else zeros)

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """What is inside; what is not is the bias's."""
        inside: Array = super().backward(grad_y, cache, run)
        run.add_grad(self._name, run.over_pixels(grad_y) - run.over_pixels(inside))
        return inside


@dataclass(frozen=True)
class Relu:
    """``max(x, 0)`` inside a block, in a `Chain`: what it is part of has no linear form."""

    def shapes(self) -> Shapes:
        """Nothing."""
        return {}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """See `ops.relu`."""
        return run.ops.relu_forward(x)

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """See `ops.relu`."""
        return run.ops.relu_backward(grad_y, cache)

    def after(self, form: Form, read: Reader, rows: slice) -> Form:
        """There is none."""
        raise NotFusibleError(
            "a ReLU before the sum has no linear form: relu(a) + relu(b) is not relu(a + b)",
            wanted="nothing but linear operations before the sum",
        )


def without_relu(linear: Any) -> Any:
    """The expression with every `Relu` left out."""
    if not hasattr(linear, "parts"):
        return linear
    kept = (without_relu(part) for part in linear.parts if not isinstance(part, Relu))
    return type(linear)(*kept)


class Concat(Sum):
    """Expressions side by side along the channels, groups of one network (rule 9)."""

    out_channels = property(lambda self: sum(part.out_channels for part in self.parts))
    groups = 1  # outputs of every part see all inputs
    alike = ("in_channels", "stride", "growth")

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """Stack the outputs."""
        found = [part.forward(x, run) for part in self.parts]
        axis = -1 if run.ops.layout == "NHWC" else 1
        y = array_module(x).concatenate([y for y, _ in found], axis=axis)
        return y, [cache for _, cache in found]

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Each part gets its channels."""
        axis = grad_y.ndim - 1 if run.ops.layout == "NHWC" else 1
        ends = np.cumsum([part.out_channels for part in self.parts])[:-1].tolist()
        shares = array_module(grad_y).split(grad_y, ends, axis=axis)
        grads = [
            part.backward(share, kept, run)
            for part, share, kept in zip(self.parts, shares, cache, strict=True)
        ]
        total: Array = sum(grads[1:], start=grads[0])
        return total

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """Rows behind one another."""
        forms = [ungrouped(part.form(read, EVERYTHING), 1) for part in self.parts]
        ends = np.cumsum([part.out_channels for part in self.parts])
        taken = [
            form.placed(slice(int(end) - len(form.bias), int(end)), self.out_channels)
            for form, end in zip(forms, ends, strict=True)
        ]
        return add(taken).part(rows, inputs)


@dataclass(frozen=True)
class Slice:
    """Some channels of the input, as a convolution (rule 9)."""

    channels: int
    start: int
    stop: int

    in_channels = property(lambda self: self.channels)
    out_channels = property(lambda self: self.stop - self.start)
    groups, stride, growth = 1, (1, 1), (0, 0)
    lattice = Lattice((0, 0), (1, 1), (1, 1))

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.channels:
            raise ShapeError(
                "there are no such channels",
                got=f"{self.start} to {self.stop}",
                wanted=f"some of 0 to {self.channels}",
            )

    def shapes(self) -> Shapes:
        """Nothing."""
        return {}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``x[:, start:stop]``."""
        return x[self._at(run)], x.shape

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """Zero for the other channels."""
        grad_x: Array = array_module(grad_y).zeros(cache, grad_y.dtype)
        grad_x[self._at(run)] = grad_y
        return grad_x

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """``K[i, start + i] = 1``."""
        at = np.arange(self.start, self.stop)[rows]
        one = read.ones(len(at))
        kernel = np.zeros((len(at), self.channels, 1, 1), one.dtype)
        kernel[np.arange(len(at)), at, 0, 0] = one
        term = Term(kernel[:, inputs], one, Lattice((0, 0), (1, 1), (1, 1)))
        return Form((term,), 0 * one, 0 * one, (1, 1), 1, 0)

    def _at(self, run: Run) -> tuple[Any, ...]:
        channels = slice(self.start, self.stop)
        return (..., channels) if run.ops.layout == "NHWC" else (slice(None), channels)


def _vector(v: Array) -> Array:
    """One number as a scalar, others as a vector."""
    return v.reshape(()) if v.size == 1 else v.reshape(-1)


def spread(numbers: Scale | Bias, read: Reader, rows: slice, count: int) -> Array:
    """A number for each of some outputs, in the arithmetic of the fusion."""
    row = getattr(numbers, "row", None)
    own = read.params[numbers.name] if row is None else read.params[numbers.name][row]
    flat = read._replace(params={numbers.name: own.reshape(-1)})
    if own.size == 1:
        return flat.vector(numbers.name, slice(None)).repeat(count)
    return flat.vector(numbers.name, rows)
