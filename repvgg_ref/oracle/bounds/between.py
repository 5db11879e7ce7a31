"""How far a right candidate may be from the reference in what stands between blocks.

As in `bounds.block`: the reference is fed the candidate's own input, so that one operation's
rounding is all that differs; what is certified holds for any order and any of the usual formulas.
Nothing here is statistical, so the likely bound is the certified one.

An input is taken to be wrong by one writing to memory: a port that does several operations at once
hands on what it has in registers, while what it shows has been rounded.
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.gated import Add, Gelu
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import Interval, squeeze_excitation, theta
from repvgg_ref.oracle.programs.between import BetweenProgram, halves

# GELU as x/2 (1 + erf(x / sqrt 2)), in units of the accumulators' u and at most: the argument's
# rounding and the constant's, |z| erf'(z) <= 0.49 twice, 1; erf to 4 ulp = 8 u; the sum 2. What is
# at most 16 of them below zero is a loss by cancellation, so it is not relative to the result.
_ERF = 16
# The same three values written to memory, 0.49, 1 and 2 units of `u_store`, and the input before
# it is read, |x gelu'(x)| <= 1.13 |x|.
_ERF_WRITES = 6
# Products by x and by 1/2, and where they are written.
_PRODUCTS = 4
# Larger than any lambda of a layer here: the probabilistic bound of a gate is not used.
_LAMBDA = 12.0


def between_bound(program: BetweenProgram, x: Array, y: Array, precision: Precision) -> Array:
    """The certified bound of every output, float64, of the shape of `y`.

    Parameters
    ----------
    program : BetweenProgram
        A right one.
    x : array (N, C, H, W)
        The candidate's input; of a sum both terms side by side.
    y : array (N, O, H, W)
        The reference's output for it.
    """
    p = precision
    if isinstance(program.op, Gelu):
        return _gelu(np.abs(x), np.abs(y), p)
    if isinstance(program.op, Add):
        terms = sum(map(np.abs, halves(x)))
        once = theta(p.u_accumulate, 1) + theta(p.u_store, 2)
        return np.asarray(once * np.abs(y) + theta(p.u_store, 2) * terms + 3 * p.tiny)
    assert program.se is not None
    found = []
    for image in np.asarray(x, np.float64):
        flat = image.reshape(len(image), -1)  # (C, H, W) -> (C, H * W)
        read = p.u_store * np.abs(flat) + p.tiny
        z = Interval(flat, read, read)
        found.append(squeeze_excitation(z, program.se, p, _LAMBDA).certified)
    return np.asarray(np.stack(found).reshape(y.shape) + p.tiny)


def _gelu(size: Array, result: Array, p: Precision) -> Array:
    """``|x| / 2`` times what 1 + erf may be wrong by, and the products' own roundings."""
    inner = _ERF * p.u_accumulate + _ERF_WRITES * p.u_store
    outer = theta(p.u_accumulate, _PRODUCTS) + theta(p.u_store, _PRODUCTS)
    underflow = p.tiny * (2 + size)
    return np.asarray((1 + outer) * size / 2 * inner + outer * result + underflow)
