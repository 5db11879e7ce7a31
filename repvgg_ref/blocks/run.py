"""What every constructor of the algebra offers, and what its passes and fusions need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from repvgg_ref.arrays import Array, is_exact
from repvgg_ref.blocks.form import Form, Pair
from repvgg_ref.exact.rounding import root
from repvgg_ref.ops import Ops

Shapes = dict[str, tuple[int, ...]]
EVERYTHING = slice(None)
NORM_VECTORS = ("gamma", "beta", "running_mean", "running_var")


class BatchStats(NamedTuple):
    """What one training step saw: biased variance over ``pixels = N * Ho * Wo`` values."""

    mean: Array
    var: Array
    pixels: int


@dataclass
class Run:
    """One pass through a block: its arrays by part name, how to compute, and what was found.

    `stats` collects the batch statistics of norms in training mode, `grads` the gradients.
    """

    params: Mapping[str, Array]
    ops: Ops
    eps: Any
    training: bool
    momentum: Any = 0.1  # of running statistics, which some borders are made of
    stats: dict[str, BatchStats] = field(default_factory=dict)
    grads: dict[str, Array] = field(default_factory=dict)

    def add_grad(self, name: str, grad: Array) -> None:
        """Note a gradient; those of an array that is used twice add up."""
        self.grads[name] = self.grads[name] + grad if name in self.grads else grad

    def on_channels(self, vector: Array) -> Array:
        """A (C,) vector, or one number, so that it meets the images of the table's layout."""
        return vector if self.ops.layout == "NHWC" or vector.ndim == 0 else vector[:, None, None]

    def over_pixels(self, x: Array) -> Array:
        """The sum over all but the channels, (C,)."""
        total: Array = x.sum(axis=(0, 1, 2) if self.ops.layout == "NHWC" else (0, 2, 3))
        return total


class Reader(NamedTuple):
    """A block's arrays for a fusion: vectors in float64, or everything as exact rationals."""

    params: Mapping[str, Array]
    eps: Any
    exact: bool = False

    def array(self, name: str, *part: slice) -> Array:
        """A part of a stored array, exact if asked; roots of rationals have 256 bits."""
        found = self.params[name][part]
        return _fractions(found) if self.exact and not is_exact(found) else found

    def vector(self, name: str, rows: slice) -> Array:
        """A part of a vector, in the arithmetic of the fusion."""
        found = self.array(name, rows)
        return found if self.exact else found.astype(np.float64)

    def ones(self, count: int) -> Array:
        """A vector of ones, in the arithmetic of the fusion."""
        return np.full(count, Fraction(1)) if self.exact else np.ones(count)


def reading(params: Mapping[str, Array], eps: Any, *, exact: bool = False) -> Reader:
    """Read `params` for a fusion: exactly if asked, or if they (or `eps` alone) are rationals."""
    rational = any(map(is_exact, params.values())) if params else isinstance(eps, Fraction)
    return Reader(params, eps, exact or rational)


class Linear(Protocol):
    """What every constructor of the algebra offers."""

    @property
    def in_channels(self) -> int:
        """C."""

    @property
    def out_channels(self) -> int:
        """O."""

    @property
    def groups(self) -> int:
        """G: kernels are block diagonal in so many blocks."""

    @property
    def stride(self) -> Pair:
        """Pixels of input from one output to the next."""

    @property
    def growth(self) -> Pair:
        """2 padding - dilation (kernel - 1): n pixels become (n + growth - 1) // stride + 1."""

    def shapes(self) -> Shapes:
        """The arrays that it owns: part name -> shape."""

    def forward(self, x: Array, run: Run) -> tuple[Array, Any]:
        """Compute, with what `backward` needs; notes the batch's statistics in `run.stats`."""

    def backward(self, grad_y: Array, cache: Any, run: Run) -> Array:
        """The gradient of x; those of the arrays go to `run.grads`."""

    def form(self, read: Reader, rows: slice, inputs: slice = EVERYTHING) -> Form:
        """The normal form of some outputs, whole groups or part of one, and some of C/G inputs."""


def evaluate(linear: Linear, params: Mapping[str, Array], x: Array, *, ops: Ops, eps: Any) -> Array:
    """An expression in evaluation mode; x and y in the table's layout."""
    y: Array = linear.forward(x, Run(params, ops, eps, training=False))[0]
    return y


def magnitudes(params: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays whose expression, of magnitudes too, is the sum of the magnitudes of its terms.

    Variances stay, and a mean turns negative, since it is subtracted. A `Factor` is no array's.
    """
    return {
        name: array
        if name.endswith((".running_var", ".num_batches_tracked"))
        else -abs(array)
        if name.endswith(".running_mean")
        else abs(array)
        for name, array in params.items()
    }


def roots(x: Array) -> Array:
    """Square roots; of rationals exact ones, or to 256 bits."""
    return np.array([root(v) for v in x], object) if is_exact(x) else np.asarray(np.sqrt(x))


def _fractions(x: Array) -> Array:
    """The exact values of floats."""
    return np.array([Fraction(float(v)) for v in x.flat], object).reshape(x.shape)
