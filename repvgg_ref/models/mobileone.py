"""MobileOne-S0 to -S4: depthwise and pointwise blocks in turns, S0's over-parameterised four times.

Source: Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone" (arXiv 2206.04040),
Tables 2 and 3, and the published code, whose names the arrays have. S4 has squeeze-and-excitation
in the second half of stage 3 and in stage 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture

_DEPTHS, _PLANES = (2, 8, 10, 1), (64, 128, 256, 512)
_NO_GATES, _GATES = (0, 0, 0, 0), (0, 0, 5, 1)  # pairs with one, the last of each stage
_NARROWING = 0.0625  # channels inside a gate, of those that it scales


def mobileone(
    name: str,
    *,
    widths: tuple[float, float, float, float],
    copies: int = 1,
    gates: tuple[int, int, int, int] = _NO_GATES,
    depths: tuple[int, int, int, int] = _DEPTHS,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Architecture:
    """A MobileOne for images of any `size`.

    Parameters
    ----------
    widths : four floats
        What multiplies the channels of stages 1 to 4.
    copies : int
        Of the largest convolution in every block but the first, which has one.
    gates : four integers
        How many pairs of blocks, the last of stages 1 to 4, have squeeze-and-excitation.
    depths : four integers
        Pairs in each stage.
    """
    planes = [int(base * width) for base, width in zip(_PLANES, widths, strict=True)]
    channels = min(64, planes[0])
    blocks = [BlockSpec("stage0", in_channels, channels, 2, kind="mobileone")]
    rows = zip(depths, planes, gates, strict=True)
    for stage, (depth, wide, gated) in enumerate(rows, start=1):
        for index in range(depth):
            stride = 2 if index == 0 else 1
            block = partial(_block, index >= depth - gated, in_channels=channels, copies=copies)
            places = (f"stage{stage}.{2 * index + half}" for half in (0, 1))
            deep, point = places
            blocks += [
                block(deep, out_channels=channels, stride=stride, groups=channels),
                block(point, out_channels=wide, stride=1, kernel=1),
            ]
            channels = wide
    return Architecture(name, tuple(blocks), num_classes)


def _block(gated: bool, name: str, **shape: Any) -> BlockSpec:
    spec = BlockSpec(name, kind="mobileone", **shape)
    narrow = int(spec.out_channels * _NARROWING)
    return replace(spec, se="before_relu", se_channels=narrow) if gated else spec


_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "MobileOne-S0": {"widths": (0.75, 1.0, 1.0, 2.0), "copies": 4},
    "MobileOne-S1": {"widths": (1.5, 1.5, 2.0, 2.5)},
    "MobileOne-S2": {"widths": (1.5, 2.0, 2.5, 4.0)},
    "MobileOne-S3": {"widths": (2.0, 2.5, 3.0, 4.0)},
    "MobileOne-S4": {"widths": (3.0, 3.5, 3.5, 4.0), "gates": _GATES},
}
MOBILEONE = {name: partial(mobileone, name, **shape) for name, shape in _SHAPES.items()}
