"""Kernels of published blocks that are computed from other arrays (rule 11)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, array_module, is_exact, scalar_like, sqrt
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.run import EVERYTHING, Reader, Run, Shapes, reading, roots

_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Dirac:
    """``alpha[o] delta[o] + beta[o] W[o] / max(norm(W[o]), 1e-12)``, the norm of a whole filter.

    Zagoruyko & Komodakis, "DiracNets" (arXiv 1706.00388, section 3), with their start values.
    delta copies the input, as `Identity` does.
    """

    conv: Conv

    starts = property(lambda self: {self._alpha: 1.0, self._beta: 0.1})
    _alpha = property(lambda self: f"{self.conv.name}.alpha")
    _beta = property(lambda self: f"{self.conv.name}.beta")
    _weight = property(lambda self: f"{self.conv.name}.weight")

    def shapes(self) -> Shapes:
        """The kernel's, and two vectors (O,)."""
        vector = (self.conv.out_channels,)
        return self.conv.shapes() | {self._alpha: vector, self._beta: vector}

    def kernel(self, read: Reader, rows: slice) -> tuple[Array, Array, int]:
        """See the class; roots of rationals have 256 bits."""
        alpha, beta = read.vector(self._alpha, rows), read.vector(self._beta, rows)
        direction, _, roundings = self._direction(read, rows)
        kernel = direction * _on_filters(beta)
        size = abs(kernel)
        at = self._middle(kernel, rows)
        kernel[at] += alpha
        size[at] += abs(alpha)
        return kernel, size, roundings + 2

    def gradients(self, grad_weight: Array, run: Run) -> dict[str, Array]:
        """With u = W / norm: ``dW = beta / norm (g - (g . u) u)``; g . u is also that of beta."""
        weight, read = run.params[self._weight], reading(run.params, run.eps)
        u, norm, _ = self._direction(read, EVERYTHING)
        g = grad_weight if read.exact else grad_weight.astype(u.dtype)
        along = (g * u).sum(axis=(1, 2, 3))
        # a filter of zeros is divided by a constant
        turned = along * (norm > scalar_like(_SMALLEST_NORM, norm))
        factor = read.vector(self._beta, EVERYTHING) / norm
        found = {
            self._weight: _on_filters(factor) * (g - _on_filters(turned) * u),
            self._alpha: g[self._middle(g, EVERYTHING)],
            self._beta: along,
        }
        return {name: grad.astype(weight.dtype) for name, grad in found.items()}

    def _direction(self, read: Reader, rows: slice) -> tuple[Array, Array, int]:
        """``W / norm``, the norm (O,), and the roundings of the first."""
        weight = read.vector(self._weight, rows)
        flat = weight.reshape(len(weight), -1)
        squares, depth = flat * flat, 0
        while squares.shape[1] > 1:  # in pairs, so that few roundings meet
            even = squares.shape[1] // 2 * 2
            rest = squares[:, even:]
            pairs = squares[:, :even:2] + squares[:, 1:even:2]
            squares, depth = array_module(flat).concatenate([pairs, rest], axis=1), depth + 1
        root = roots if is_exact(squares) else sqrt
        norm = array_module(flat).maximum(root(squares[:, 0]), scalar_like(_SMALLEST_NORM, squares))
        return weight / _on_filters(norm), norm, depth // 2 + 4

    def _middle(self, kernel: Array, rows: slice) -> tuple[Any, ...]:
        """The tap of every filter at which it meets its own channel."""
        xp, (high, wide) = array_module(kernel), self.conv.kernel
        own = np.arange(self.conv.out_channels)[rows] % prod(kernel.shape[1:2])
        return xp.arange(len(kernel)), xp.asarray(own), high // 2, wide // 2


def _on_filters(vector: Array) -> Array:
    """(O,) so that it meets kernels (O, C/G, Kh, Kw)."""
    return vector[:, None, None, None]
