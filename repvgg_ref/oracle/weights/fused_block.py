"""The numbers of one fused block: what they must be, and how far what is stored may be off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.run import EVERYTHING, Linear, Reader
from repvgg_ref.files.modules import FoundBlock
from repvgg_ref.oracle.weights.arithmetic import FORMAT_NAMES, UNITS, least_error
from repvgg_ref.oracle.weights.conversion import ROUNDINGS
from weights_io import LazyArray

FORMATS = {dtype: short for short, dtype in FORMAT_NAMES.items()}


@dataclass(frozen=True)
class Fused:
    """What a block must fuse to, and the magnitudes that were added for each number."""

    weight: Array
    bias: Array
    weight_size: Array
    bias_size: Array

    @property
    def is_finite(self) -> bool:
        """Whether anything can be held to it."""
        return all(np.isfinite(array).all() for array in vars(self).values())

    def part(self, rows: slice) -> Fused:
        """That of some output channels."""
        return Fused(*(array[rows] for array in vars(self).values()))


class Stored(NamedTuple):
    """A candidate's arrays in float64, and how coarsely each is computed or stored.

    `roundings` is how many of them a number may be off.
    """

    weight: Array
    bias: Array
    units: tuple[float, float]
    least: tuple[float, float]
    roundings: int = ROUNDINGS

    def part(self, rows: slice) -> Stored:
        """That of some output channels."""
        return self._replace(weight=self.weight[rows], bias=self.bias[rows])


def stored_of(got: list[LazyArray], is_double: bool) -> Stored:
    """Numbers are held to float64 only if they were trained and are stored in it."""
    formats = [FORMATS[array.dtype] for array in got]
    computed = UNITS["fp64" if is_double else "fp32"]
    weight, bias = (array.read().astype(np.float64) for array in got)
    units, least = [max(UNITS[f], computed) for f in formats], [least_error(f) for f in formats]
    return Stored(weight, bias, (units[0], units[1]), (least[0], least[1]))


def fused_of(
    linear: Linear,
    parts: Mapping[str, Array],
    eps: float,
    block: FoundBlock,
    rows: slice = EVERYTHING,
) -> Fused:
    """What an expression, the block's or another, fuses to, or some output channels of it.

    These are whole groups, or some of one.
    """
    form = linear.form(Reader(parts, eps), rows)
    outputs, *rest = block.conv.shapes()["fused.weight"]
    shape = len(range(outputs)[rows]), *rest
    weight, size = np.zeros(shape), np.zeros(shape)
    for i in range(shape[2]):
        for j in range(shape[3]):
            down, right = block.conv.dilation
            offset = down * (i - shape[2] // 2), right * (j - shape[3] // 2)
            if form.lattice.tap(offset) is not None:
                weight[:, :, i, j], size[:, :, i, j] = form.at(offset), form.size_at(offset)
    return Fused(weight, np.asarray(form.bias), size, np.asarray(form.bias_size))


def bounds(got: Stored, wanted: Fused) -> tuple[Array, Array]:
    """How far each weight and each bias may be from what is wanted."""
    sizes = wanted.weight_size, wanted.bias_size
    weight, bias = (
        got.roundings * (unit * size + least)
        for unit, size, least in zip(got.units, sizes, got.least, strict=True)
    )
    return weight, bias


def worst(got: Stored, wanted: Fused) -> tuple[float, float]:
    """Error and bound at the number that uses most of its bound; NaN counts as most."""
    bound = np.concatenate([each.ravel() for each in bounds(got, wanted)])
    error = np.concatenate(
        [np.abs(got.weight - wanted.weight).ravel(), np.abs(got.bias - wanted.bias)]
    )
    at = int(np.argmax(np.where(np.isnan(error), np.inf, error / bound)))
    return float(error[at]), float(bound[at])
