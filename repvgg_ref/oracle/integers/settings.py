"""What an integer layer says besides its weights: how it convolves, clips and scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.scaling import MULTIPLIER_BITS

# Relative: devices hold multipliers in 16 bits at least.
_COARSEST = 2.0**-15
_FARTHEST = MULTIPLIER_BITS + 1  # below 2**-32 a multiplier is held as 0
_NEAREST = 1.0  # units of the multiplier: rounding, half up or to even, and that of a division
_RANGE = 255  # steps: the farthest that a product can be from the zero point, and not be clipped


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
    apart = multipliers_apart(layer)
    if apart is not None and not (apart.relative <= _COARSEST).all():
        channels = np.flatnonzero(~(apart.relative <= _COARSEST))
        says = (
            f"the multipliers of {len(channels)} channels are not their scales' "
            f"(channel {channels[0]}: off by {float(apart.relative[channels[0]]):.2g})"
        )
        yield Slip(
            "multiplier",
            says,
            "M = input_scale * weight_scale / output_scale = multiplier * 2**-(31 + shift)",
        )


class Apart(NamedTuple):
    """How far stated multipliers are from those of the scales: (O,) or (1,) float64 arrays.

    `relative`, and `units` of the multiplier's own last bit.
    """

    relative: Array
    units: Array


def multipliers_apart(layer: IntegerLayer) -> Apart | None:
    """None of a layer that leaves its multipliers to be derived."""
    if layer.multiplier is None or layer.weight_scale is None:
        return None
    held = layer.scaling()
    stated = np.ldexp(held.multiplier.astype(np.float64), -(MULTIPLIER_BITS + held.shift))
    # In float64, as TensorFlow Lite does it: a product rounded to float32 would be 2**-24 off.
    scale = layer.weight_scale.astype(np.float64) * float(layer.input.scale)
    real = scale / float(layer.output.scale)
    stated = np.where((held.multiplier == 0) & (real < 2.0**-_FARTHEST), real, stated)
    relative = np.atleast_1d(np.abs(np.broadcast_to(stated, real.shape) / real - 1))
    return Apart(relative, relative * np.atleast_1d(held.multiplier.astype(np.float64)))


def says_multipliers(layers: Sequence[IntegerLayer]) -> tuple[str, tuple[str, ...]]:
    """What may be claimed of all layers' multipliers, and a note on each that is not exact."""
    known = {layer.name: found for layer in layers if (found := multipliers_apart(layer))}
    if not known:
        return "multipliers follow from the scales", ()
    notes = []
    for name, apart in known.items():
        off = (apart.units > _NEAREST) & (apart.relative <= _COARSEST)
        if off.any():
            worst = float(apart.relative[off].max())
            notes.append(
                f"{name}: {off.sum()} of {off.size} stated multipliers are not the nearest to "
                f"those of the scales: off by up to {apart.units[off].max():.0f}, a part of "
                f"{worst:.2g}, "
                f"which moves a number by {_RANGE * worst:.2g} of a step at most"
            )
    if notes:
        return "multipliers are near those of the scales (see notes)", tuple(notes)
    return "multipliers are those of the scales", ()


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
