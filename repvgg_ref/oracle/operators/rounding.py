"""How far from an exact value a right port of an operator may be, carried through its steps.

The model is that of `oracle.bounds`: k roundings make a number wrong by ``theta_k`` of itself at
most, in whatever order terms are summed. An `Approx` is an exact array beside such a bound; each
function here does one step on it (running error analysis: Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 3.3, with bounds known beforehand instead of computed sums).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import cutting_drift, likely_theta, theta

Product = Callable[[Array, Array], Array]

# The bounds are sums of positive terms in float64, the exact values sums of signed ones: 2**-28 of
# a bound pays for both, as in `bounds.block`.
_OWN_ERROR = 2.0**-28


class Approx(NamedTuple):
    """`value`, which a right port has up to `error`; `unit` is what its errors are measured in.

    `unit` is the root of the sum of the squares of the largest single roundings: in it the mean
    square of errors that are independent and of mean 0 is 1/3 at most.
    """

    value: Array
    error: Array
    unit: Array


@dataclass(frozen=True)
class Rounding:
    """The arithmetic of a port: `lam` None for bounds that hold always, else likely ones."""

    precision: Precision
    lam: float | None = None

    def sums(self, steps: float) -> float:
        """Relative error of a term after so many roundings in the accumulator."""
        u = self.precision.u_accumulate
        return theta(u, steps) if self.lam is None else likely_theta(u, steps, self.lam)

    def writes(self, times: float) -> float:
        """Relative error of a value that is written to memory so often."""
        return theta(self.precision.u_store, times)

    def reading_exactly(self) -> Rounding:
        """The same for inputs that the format holds without rounding."""
        return replace(self, precision=replace(self.precision, u_input=0.0, u_weight=0.0))


def exact(value: Array) -> Approx:
    """A number that is given."""
    value = np.asarray(value, np.float64)
    return Approx(value, np.zeros_like(value), np.zeros_like(value))


def read(value: Array, r: Rounding) -> Approx:
    """A number that is given, and rounded to the format when it is read."""
    value = np.asarray(value, np.float64)
    error = r.precision.u_input * np.abs(value)
    return Approx(value, error + r.precision.tiny * (value != 0), error)


def dot(product: Product, a: Approx, b: Approx, r: Rounding, start: Array | None = None) -> Approx:
    """Sums of products, ``product(a, b) + start``: a convolution, a matrix product, their adjoints.

    Parameters
    ----------
    product : callable
        Bilinear; every output a sum of products of one number of each argument.
    start : array, broadcast to the output, optional
        What the sum starts from or ends with: the bias.
    """
    p = r.precision
    value = product(a.value, b.value)
    if p.u_accumulate == 0:  # arithmetic that does not round
        return exact(value if start is None else value + start)
    x, w = np.abs(a.value), np.abs(b.value)
    size = product(x, w)
    terms = float(product(np.ones_like(x), np.ones_like(w)).max(initial=0))
    wider = product(x + a.error + p.tiny, w + b.error + p.tiny) - size
    energy = np.sqrt(product(x**2, w**2))
    if start is not None:
        value, size = value + start, size + np.abs(start)
    growth = r.sums(terms + 1)
    if r.lam is None:
        own = ((1 + p.u_input) * (1 + p.u_weight) * (1 + growth) - 1) * size
    else:
        own = r.lam * np.hypot(p.u_input, p.u_weight) * energy + growth * size
        own = own + cutting_drift(p) * np.abs(value)
    sure = (1 + p.u_input) * (1 + p.u_weight) * (1 + r.sums(terms + 1))
    written = r.writes(2) * np.abs(value) + p.tiny
    error = np.maximum(wider, 0) * sure + own + p.tiny_accumulate * terms + written
    unit = np.sqrt(
        (p.u_input**2 + p.u_weight**2) * energy**2
        + (terms + 1) * (p.u_accumulate * size) ** 2
        + (p.u_store * value) ** 2
    )
    return finished(value, error, unit)


def total(a: Approx, axes: tuple[int, ...], r: Rounding) -> Approx:
    """The sum over some axes."""
    terms = float(np.prod([a.value.shape[axis] for axis in axes]))
    p = r.precision
    value, size = a.value.sum(axis=axes), np.abs(a.value).sum(axis=axes)
    growth = r.sums(terms) + p.u_input
    error = a.error.sum(axis=axes) * (1 + growth) + growth * size
    error = error + r.writes(1) * np.abs(value) + p.tiny * terms
    unit = np.hypot(np.sqrt(terms) * p.u_accumulate * size, p.u_store * value)
    return finished(value, error, unit)


def added(parts: list[Approx], r: Rounding) -> Approx:
    """The sum of several arrays of one shape."""
    p, n = r.precision, len(parts)
    value = sum((part.value for part in parts), start=np.zeros(()))
    size = sum((np.abs(part.value) for part in parts), start=np.zeros(()))
    wrong = sum((part.error for part in parts), start=np.zeros(()))
    growth = (1 + r.sums(n)) * (1 + r.writes(n)) - 1
    return finished(value, wrong * (1 + growth) + growth * size + p.tiny * n, growth * size)


def rectified(z: Approx) -> Approx:
    """``max(z, 0)``: below 0 only what climbs above it is an error at all."""
    error = np.clip(z.value + z.error, 0, z.error)
    return Approx(np.maximum(z.value, 0), error, np.where(z.value > 0, z.unit, 0.0))


def masked(grad: Approx, z: Approx) -> Approx:
    """`grad` where ``z > 0``, 0 elsewhere; either where rounding may decide the sign of z."""
    on = z.value > 0
    unsure = np.abs(z.value) <= z.error
    error = np.where(unsure, np.abs(grad.value) + grad.error, np.where(on, grad.error, 0.0))
    return Approx(np.where(on, grad.value, 0.0), error, np.where(on, grad.unit, 0.0))


def finished(value: Array, error: Array, unit: Array) -> Approx:
    """An `Approx` whose bound pays for its own computation too."""
    return Approx(np.asarray(value), np.asarray(error) * (1 + _OWN_ERROR), np.asarray(unit))
