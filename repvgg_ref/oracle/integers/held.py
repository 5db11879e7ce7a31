"""A dump's numbers in the activations' own type and layout, where others hold the same numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.wrappers import listed
from repvgg_ref.integer.layers import Quantization
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.oracle.candidates.layout import by_shape

INPUT = "input"
_NEAR = 1e-5  # relative: real numbers of a scale, computed or printed in float32


def as_held(
    network: IntegerNetwork, numbers: Mapping[str, Array]
) -> tuple[dict[str, Array], list[str]]:
    """The dump with whole or dequantised numbers in their own type, and notes on which these are.

    What the type cannot hold stays as it is: that is no right port's.
    """
    sides = {layer.name: layer.output for layer in network.layers}
    sides[INPUT] = network.layers[0].input
    found, notes = dict(numbers), []
    told: dict[str, list[str]] = {}
    for name, array in numbers.items():
        side = sides.get(name)
        if side is None or array.dtype == side.dtype:
            continue
        for how, held in (
            (f"whole numbers of type {array.dtype}", _whole(array, side)),
            (f"real numbers of type {array.dtype}, dequantised", _numbers(array, side)),
        ):
            if held is not None:
                found[name] = held
                told.setdefault(f"{how}, taken for the {side.dtype} that they are", []).append(name)
                break
    notes += [f"{listed(names)}: {how}" for how, names in told.items()]
    return found, notes


def in_nchw(
    network: IntegerNetwork, numbers: Mapping[str, Array]
) -> tuple[dict[str, Array], list[str]]:
    """The dump with (N, H, W, C) images moved to (N, C, H, W), and a note on which these are.

    Channels tell it; where C = H = W the other layers do, and without them it is NCHW.
    """
    count = network.in_channels
    channels = {INPUT: count}
    for layer in network.layers:
        count = count if layer.out_channels is None else layer.out_channels
        channels[layer.name] = count
    seen = {
        name: by_shape(array, channels[name])
        for name, array in numbers.items()
        if name in channels and array.ndim == 4
    }
    is_last = "NHWC" in seen.values() and "NCHW" not in seen.values()
    moved = [name for name, how in seen.items() if how == "NHWC" or (is_last and how == "either")]
    found = {
        name: np.moveaxis(array, 3, 1) if name in moved else array
        for name, array in numbers.items()
    }
    notes = [f"NHWC transposed to NCHW: {listed(moved)}"] if moved else []
    if moved and "NCHW" in seen.values():
        notes.append("the layers come in both layouts")
    return found, notes


def _whole(array: Array, side: Quantization) -> Array | None:
    if array.dtype.kind not in "iuf":
        return None
    range_ = np.iinfo(side.dtype)
    inside = (array >= range_.min) & (array <= range_.max)  # NaN is not
    if not inside.all() or (array != np.rint(array)).any():
        return None
    found: Array = array.astype(side.dtype)
    return found


def _numbers(array: Array, side: Quantization) -> Array | None:
    """What gives these real numbers by ``scale * (number - zero_point)``, each of them."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        return None
    real = array.astype(np.float64)
    steps = np.rint(real / float(side.scale))
    if (np.abs(steps * float(side.scale) - real) > _NEAR * np.abs(real)).any():
        return None
    return _whole(steps + int(side.zero_point), side)
