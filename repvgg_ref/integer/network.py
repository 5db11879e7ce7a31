"""A chain of integer layers, and the numbers of each on the way through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.errors import ReportedError, did_you_mean
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.schemes import ANY, SCHEMES


class Step(NamedTuple):
    """A layer, the numbers that it reads, its exact accumulators and the numbers that it gives."""

    layer: IntegerLayer
    x: Array
    accumulators: Array
    y: Array


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Layers in order, each reading the numbers of the one before, and how they round.

    `rounding` is a key of `SCHEMES`, or "any": a network that leaves it open can judge a dump,
    but not compute.
    """

    layers: tuple[IntegerLayer, ...]
    rounding: str

    __repr__ = one_line

    def __post_init__(self) -> None:
        if self.rounding not in (ANY, *SCHEMES):
            raise ReportedError(
                "unknown rounding",
                got=repr(self.rounding),
                wanted=", ".join((*SCHEMES, ANY)),
                advice=did_you_mean(self.rounding, SCHEMES),
            )
        if not self.layers:
            raise ReportedError("an integer network without layers", got="0", wanted="at least 1")
        if self.layers[0].kind != "conv":
            raise ReportedError(
                "an integer network begins with another layer",
                got=self.layers[0].kind,
                wanted="a convolution",
            )
        for layer in self.layers:  # first: NaN is unlike itself
            layer.scaling()  # refuses scales and multipliers that are none
        for before, after in pairwise(self.layers):
            _require_joined(before, after)
        _require_channels(self.layers)

    @property
    def in_channels(self) -> int:
        """Of the images."""
        found = self.layers[0].in_channels
        assert found is not None
        return found

    @property
    def out_channels(self) -> int:
        """Of the last layer: classes, where there is a head."""
        return next(n for layer in reversed(self.layers) if (n := layer.out_channels) is not None)

    def __getitem__(self, name: str) -> IntegerLayer:
        """The layer of this name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def rounded(self, rounding: str) -> IntegerNetwork:
        """The same with another scheme."""
        return replace(self, rounding=rounding)

    def forward(self, x: Array) -> dict[str, Array]:
        """Every layer's numbers by name.

        Parameters
        ----------
        x : (N, C, H, W) array
            Numbers of the first layer's input; real numbers are quantised by its scale first.

        Raises
        ------
        ReportedError
            If the network leaves its rounding open.
        """
        return {step.layer.name: step.y for step in self.walk(x)}

    def walk(self, x: Array) -> Iterator[Step]:
        """The same, a layer at a time, with its accumulators."""
        if self.rounding == ANY:
            raise ReportedError(
                "the network leaves its rounding open", got=repr(ANY), wanted=", ".join(SCHEMES)
            )
        x = self.entered(x)
        for layer in self.layers:
            sums = layer.accumulate(x)
            y = layer.finish(sums, self.rounding, pixels=int(np.prod(x.shape[2:])))
            yield Step(layer, x, sums, y)
            x = y

    def entered(self, x: Array) -> Array:
        """`x` as numbers of the first layer's input."""
        quantization = self.layers[0].input
        return quantization.numbers(x) if np.issubdtype(x.dtype, np.floating) else x


def _require_joined(before: IntegerLayer, after: IntegerLayer) -> None:
    """What one layer gives the next one reads: the same numbers with the same meaning."""
    given, read = before.output, after.input
    for what, a, b in (
        ("scale", given.scale, read.scale),
        ("zero point", given.zero_point, read.zero_point),
        ("type", given.dtype, read.dtype),
    ):
        if a != b:
            raise ReportedError(
                f"{after.name} reads another {what} than {before.name} gives",
                got=str(b),
                wanted=str(a),
            )


def _require_channels(layers: tuple[IntegerLayer, ...]) -> None:
    """Every layer reads as many channels as there are."""
    channels: int | None = None
    for layer in layers:
        if None not in (channels, layer.in_channels) and layer.in_channels != channels:
            raise ReportedError(
                f"{layer.name} reads other channels than there are",
                got=str(layer.in_channels),
                wanted=str(channels),
            )
        channels = channels if layer.out_channels is None else layer.out_channels
