"""The fused value in decimals of 250 digits, written without looking at `repvgg_ref.blocks.fusion`.

A second witness, in the x87's 64-bit significands, clears the millions of taps that are nowhere
near a rounding boundary; it hands the rest to the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array

CONTEXT = Context(prec=250, Emin=-99999, Emax=99999)
_CONVOLUTIONS = ("branch_3x3", "branch_1x1")
_BRANCHES = (*_CONVOLUTIONS, "branch_identity")


class Witness:
    """One block's exact taps and biases, from its arrays in train form."""

    def __init__(self, params: Mapping[str, Array], block: str, groups: int, eps: float) -> None:
        self.eps = eps
        self.parts = {
            name.removeprefix(block + "."): array
            for name, array in params.items()
            if name.startswith(block + ".")
        }
        self.present = [b for b in _BRANCHES if f"{b}.bn.gamma" in self.parts]
        self.per_group = len(self.parts["branch_3x3.bn.gamma"]) // groups

    def weight(self, o: int, i: int, h: int, w: int) -> Decimal:
        """W'[o, i, h, w]."""
        total = self._times(self._value("branch_3x3.conv.weight", o, i, h, w), "branch_3x3", o)
        if (h, w) != (1, 1):
            return total
        if "branch_1x1" in self.present:
            tap = self._value("branch_1x1.conv.weight", o, i, 0, 0)
            total = CONTEXT.add(total, self._times(tap, "branch_1x1", o))
        if "branch_identity" in self.present and i == o % self.per_group:
            total = CONTEXT.add(total, self._times(Decimal(1), "branch_identity", o))
        return total

    def bias(self, o: int) -> Decimal:
        """b'[o]."""
        total = Decimal(0)
        for branch in self.present:
            shift = self._times(self._value(f"{branch}.bn.running_mean", o), branch, o)
            beta = self._value(f"{branch}.bn.beta", o)
            total = CONTEXT.add(total, CONTEXT.subtract(beta, shift))
        return total

    def _times(self, value: Decimal, branch: str, o: int) -> Decimal:
        """``value * gamma / sqrt(var + eps)``."""
        var = CONTEXT.add(self._value(f"{branch}.bn.running_var", o), Decimal(self.eps))
        product = CONTEXT.multiply(value, self._value(f"{branch}.bn.gamma", o))
        return CONTEXT.divide(product, CONTEXT.sqrt(var))

    def _value(self, part: str, *at: int) -> Decimal:
        return Decimal(float(self.parts[part][at]))


def is_nearest(got: Any, exact: Decimal) -> bool:
    """Whether `got` is the number of its type nearest to `exact`, the even one of two."""
    number = type(got)
    top, below = (
        Decimal(float(v)) for v in (np.finfo(number).max, np.nextafter(np.finfo(number).max, 0))
    )
    beyond = CONTEXT.subtract(CONTEXT.add(top, top), below)  # what would follow the largest number
    with np.errstate(over="ignore"):
        found = (np.nextafter(got, number(-np.inf)), got, np.nextafter(got, number(np.inf)))
    edges = [
        Decimal(float(v)) if np.isfinite(v) else beyond.copy_sign(Decimal(float(v))) for v in found
    ]
    low, ours, high = (_distance(exact, edge) for edge in edges)
    nearest = min(low, ours, high)
    is_even = int(got.view(f"u{got.itemsize}")) & 1 == 0
    return ours == nearest and (is_even or nearest not in (low, high))


def _distance(a: Decimal, b: Decimal) -> Decimal:
    return CONTEXT.abs(CONTEXT.subtract(a, b))


def exceptions(
    fused_weight: Array, fused_bias: Array, witness: Witness
) -> list[tuple[str, tuple[int, ...]]]:
    """Every fused value that is not the exact one, correctly rounded; all of them looked at."""
    bad = [
        ("weight", at)
        for at in np.ndindex(*fused_weight.shape)
        if not is_nearest(fused_weight[at], witness.weight(*at))
    ]
    return bad + [
        ("bias", at)
        for at in np.ndindex(*fused_bias.shape)
        if not is_nearest(fused_bias[at], witness.bias(*at))
    ]


def unclear(values: Array, fused: Array, error: Array) -> Array:
    """Where a longdouble value with this error does not show that `fused` is its rounding."""
    wide = fused.astype(np.longdouble)
    low, high = (np.nextafter(fused, fused.dtype.type(s * np.inf)) for s in (-1, 1))
    above_low = values - error > (wide + low) / 2
    below_high = values + error < (wide + high) / 2
    return np.argwhere(~(above_low & below_high))
