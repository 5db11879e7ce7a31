"""What an integer layer says besides its weights: how it convolves, clips and scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.scaling import MULTIPLIER_BITS

# Relative: devices hold multipliers in 16 bits at least.
_COARSEST = 2.0**-15


class Slip(NamedTuple):
    """A bug's name, what the layer says, and what to do."""

    bug: str
    says: str
    advice: str


def clips_at_zero(layer: IntegerLayer) -> bool:
    """Whether no number below the zero point comes out: by ReLU, or since none is smaller."""
    lowest = np.iinfo(layer.output.dtype).min
    return layer.relu or int(layer.output.zero_point) == lowest


def slips(layer: IntegerLayer, spec: BlockSpec | None) -> Iterator[Slip]:
    """Everything that differs from the block; `spec` is None for the linear layer."""
    if spec is not None:
        settings = fused_conv(spec).settings
        for what in ("stride", "padding", "dilation", "groups"):
            if (got := getattr(layer, what)) != settings[what]:
                says = f"{what} is {got}, not {settings[what]}"
                yield Slip(what, says, f"write {what} {settings[what]}")
    wants_relu = spec is not None and spec.activation == "relu"
    if wants_relu and not clips_at_zero(layer):
        yield Slip("relu-missing", "there is no ReLU", "clip at the output's zero point")
    if layer.relu and not wants_relu:
        yield Slip("relu-superfluous", "a ReLU stands where none should", "clip at the type's ends")
    yield from _multipliers(layer)


def _multipliers(layer: IntegerLayer) -> Iterator[Slip]:
    """Multipliers that the network states itself must be those of its scales."""
    if layer.multiplier is None or layer.weight_scale is None:
        return
    held = layer.scaling()
    stated = np.ldexp(held.multiplier.astype(np.float64), -(MULTIPLIER_BITS + held.shift))
    real = held.numerator.astype(np.float64) / float(held.denominator)
    apart = np.abs(np.broadcast_to(stated, real.shape) / real - 1)
    if not (apart <= _COARSEST).all():
        channels = np.flatnonzero(~(np.atleast_1d(apart) <= _COARSEST))
        says = (
            f"the multipliers of {len(channels)} channels are not their scales' "
            f"(channel {channels[0]}: off by {float(np.atleast_1d(apart)[channels[0]]):.2g})"
        )
        yield Slip(
            "multiplier",
            says,
            "M = input_scale * weight_scale / output_scale = multiplier * 2**-(31 + shift)",
        )


def unlike_chain(layers: Sequence[IntegerLayer], convolutions: int) -> str:
    """Why the layers are not so many convolutions, pooling and a linear layer; "" if they are."""
    wanted = ["conv"] * convolutions + ["pool", "linear"]
    found = [layer.kind for layer in layers]
    if found == wanted:
        return ""
    if found == [*wanted[:convolutions], "linear"]:
        return "there is no pooling before the linear layer"
    return (
        f"{found.count('conv')} convolutions, {found.count('pool')} pooling and "
        f"{found.count('linear')} linear layers, not {convolutions}, 1 and 1 in this order"
    )
