"""Kernels of published blocks that are computed from other arrays (rule 11)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, array_module, is_exact, scalar_like, sqrt
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.run import EVERYTHING, Reader, Run, Shapes, roots

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
        weight = read.vector(self._weight, rows)
        squares, depth = (weight * weight).reshape(len(weight), -1), 0
        while squares.shape[1] > 1:  # in pairs, so that few roundings meet
            even = squares.shape[1] // 2 * 2
            pairs = squares[:, :even:2] + squares[:, 1:even:2]
            squares, depth = np.concatenate([pairs, squares[:, even:]], axis=1), depth + 1
        kernel = weight * _on_filters(beta / _norm(squares[:, 0]))
        size, at = abs(kernel), self._middle(kernel, rows)
        kernel[at] += alpha
        size[at] += abs(alpha)
        return kernel, size, depth // 2 + 6

    def weight(self, x: Array, run: Run) -> Array:
        """`kernel` in the arithmetic of its arrays."""
        weight = run.params[self._weight]
        kernel = weight * _on_filters(run.params[self._beta] / _norm(_summed(weight * weight)))
        kernel[self._middle(kernel, EVERYTHING)] += run.params[self._alpha]
        return kernel

    def gradients(self, grad_weight: Array, run: Run) -> dict[str, Array]:
        """With u = W / norm: ``dW = beta / norm (g - (g . u) u)``; g . u is also that of beta."""
        weight, g = run.params[self._weight], grad_weight
        norm = _norm(_summed(weight * weight))
        along = _summed(g * weight) / norm
        # a filter of zeros is divided by a constant
        turned = along * (norm > scalar_like(_SMALLEST_NORM, norm)) / norm
        grad = _on_filters(run.params[self._beta] / norm) * (g - _on_filters(turned) * weight)
        return {
            self._weight: grad.astype(weight.dtype),
            self._alpha: g[self._middle(g, EVERYTHING)].astype(weight.dtype),
            self._beta: along.astype(weight.dtype),
        }

    def _middle(self, kernel: Array, rows: slice) -> tuple[Any, ...]:
        """The tap of every filter at which it meets its own channel."""
        xp, (high, wide) = array_module(kernel), self.conv.kernel
        own = np.arange(self.conv.out_channels)[rows] % prod(kernel.shape[1:2])
        return xp.arange(len(kernel)), xp.asarray(own), high // 2, wide // 2


def _norm(squared: Array) -> Array:
    """Lengths (O,) of filters, of their squares."""
    root = roots if is_exact(squared) else sqrt
    smallest = scalar_like(_SMALLEST_NORM, squared)
    return array_module(squared).maximum(root(squared), smallest)  # type: ignore[no-any-return]


def _summed(kernel: Array) -> Array:
    """The sum over each filter, (O,)."""
    return kernel.sum(axis=(1, 2, 3))  # type: ignore[no-any-return]


def _on_filters(vector: Array) -> Array:
    """(O,) so that it meets kernels (O, C/G, Kh, Kw)."""
    return vector[:, None, None, None]
