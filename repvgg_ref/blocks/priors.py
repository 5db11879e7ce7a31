"""Kernels and factors of published blocks that are no convolution's own (rules 4 and 11)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, array_module, scalar_like
from repvgg_ref.blocks.form import Form, Pair
from repvgg_ref.blocks.run import EVERYTHING, Reader, Run, Shapes


@dataclass(frozen=True)
class Factor:
    """Times an integer that no array holds: -1 where a branch is subtracted; follows in a chain."""

    number: int

    def shapes(self) -> Shapes:
        """Nothing."""
        return {}

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """``y = n x``."""
        return x * scalar_like(self.number, x), None

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """``grad_x = n grad_y``."""
        grad_x: Array = grad_y * scalar_like(self.number, grad_y)
        return grad_x

    def after(self, form: Form, read: Reader, rows: slice) -> Form:
        """Kernel and bias times n."""
        return form.scaled(self.number * read.ones(len(form.bias)))


@dataclass(frozen=True)
class Stored:
    """A depthwise kernel that is stored (C, Kh, Kw), or (Kh, Kw) for all channels."""

    name: str
    channels: int
    shape: tuple[int, ...]

    starts = property(lambda self: {})

    def shapes(self) -> Shapes:
        """The kernel's."""
        return {self.name: self.shape}

    def kernel(self, read: Reader, rows: slice) -> tuple[Array, Array, int]:
        """(C, 1, Kh, Kw)."""
        found = read.vector(self.name, rows if len(self.shape) == 3 else EVERYTHING)
        kernel = np.broadcast_to(found, (len(range(self.channels)[rows]), *self.shape[-2:]))
        return kernel[:, None], abs(kernel[:, None]), 0

    def weight(self, x: Array, run: Run) -> Array:
        """All channels'."""
        whole = (self.channels, *self.shape[-2:])
        kernel: Array = array_module(x).broadcast_to(run.params[self.name], whole)[:, None]
        return kernel

    def gradients(self, grad_weight: Array, run: Run) -> dict[str, Array]:
        """The sum over the channels, if they share it."""
        grad = grad_weight[:, 0]
        return {self.name: grad if len(self.shape) == 3 else grad.sum(axis=0)}


@dataclass(frozen=True)
class Separable:
    """A depthwise kernel with some outputs a channel, then a pointwise one, as OREPA stores them.

    ``K[o, i] = sum over t of P[p, i m + t] D[(c C/G + i) m + t]`` for an output o of group c, the
    q-th there: its row of P is p = q G + c, for P counts the groups fastest, and D's outputs go by
    channels (Hu et al., arXiv 2204.00826, figure 4, and the published code).
    """

    depthwise: str
    pointwise: str
    inputs: int
    outputs: int
    groups: int
    multiplier: int
    window: Pair

    starts = property(lambda self: {})
    _per_group = property(lambda self: self.inputs // self.groups)

    def shapes(self) -> Shapes:
        """(C m, 1, Kh, Kw) and (O, m C/G, 1, 1)."""
        narrow = self.multiplier * self._per_group
        return {
            self.depthwise: (self.inputs * self.multiplier, 1, *self.window),
            self.pointwise: (self.outputs, narrow, 1, 1),
        }

    def kernel(self, read: Reader, rows: slice) -> tuple[Array, Array, int]:
        """(O, C/G, Kh, Kw): whole groups are computed, or some outputs of one."""
        each = self.outputs // self.groups
        start, stop, _ = rows.indices(self.outputs)
        first, end = start // each, -(-stop // each)
        within = slice(start - first * each, stop - first * each)
        one = end - first == 1
        shaped = self._shaped(read.params)
        chosen = {
            self.depthwise: shaped[0][first:end],
            self.pointwise: shaped[1][first:end, :, within if one else EVERYTHING],
        }
        part = read._replace(params=chosen)
        deep, point = (part.vector(name, EVERYTHING) for name in chosen)
        kernel, size = self._product(deep, point), self._product(abs(deep), abs(point))
        if not one:
            kernel, size = kernel[within], size[within]
        return kernel, size, self.multiplier

    def weight(self, x: Array, run: Run) -> Array:
        """`kernel` of all outputs in the arithmetic of its arrays."""
        return self._product(*self._shaped(run.params))

    def gradients(self, grad_weight: Array, run: Run) -> dict[str, Array]:
        """Of both factors of the matrix product."""
        deep, point = self._shaped(run.params)
        each, shapes = self.outputs // self.groups, self.shapes()
        # (O, C/G, Kh, Kw) -> (G, O/G, C/G, Kh*Kw) -> (G, C/G, O/G, Kh*Kw)
        grad = grad_weight.reshape(self.groups, each, self._per_group, -1).swapaxes(1, 2)
        grad_deep = point.swapaxes(2, 3) @ grad  # (G, C/G, m, Kh*Kw)
        # (G, C/G, O/G, m) -> (O/G, G, C/G, m)
        grad_point = (grad @ deep.swapaxes(2, 3)).transpose(2, 0, 1, 3)
        return {
            self.depthwise: grad_deep.reshape(shapes[self.depthwise]),
            self.pointwise: grad_point.reshape(shapes[self.pointwise]),
        }

    def _shaped(self, params: Any) -> tuple[Array, Array]:
        """(G, C/G, m, Kh*Kw) and (G, C/G, O/G, m)."""
        shape = self.groups, self._per_group, self.multiplier, prod(self.window)
        deep = params[self.depthwise].reshape(shape)
        point = params[self.pointwise].reshape(-1, *shape[:3]).transpose(1, 2, 0, 3)
        return deep, point

    def _product(self, deep: Array, point: Array) -> Array:
        """(G, C/G, O/G, m) @ (G, C/G, m, Kh*Kw): (O, C/G, Kh, Kw)."""
        found = (point @ deep).swapaxes(1, 2)
        kernel: Array = found.reshape(-1, self._per_group, *self.window)
        return kernel
