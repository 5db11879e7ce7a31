"""MobileOne-S0: depthwise and pointwise blocks in turns, over-parameterised four times.

Source: Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone" (arXiv 2206.04040),
Tables 2 and 3, and the published code, whose names the arrays have. S1 to S4 have other widths and
copies; S4 also has squeeze-and-excitation.
"""

from __future__ import annotations

from functools import partial

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture

_DEPTHS, _PLANES = (2, 8, 10, 1), (64, 128, 256, 512)


def mobileone(
    name: str,
    *,
    widths: tuple[float, float, float, float],
    copies: int,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Architecture:
    """A MobileOne without squeeze-and-excitation, for images of any `size`.

    Parameters
    ----------
    widths : four floats
        What multiplies the channels of stages 1 to 4.
    copies : int
        Of the largest convolution in every block but the first, which has one.
    """
    planes = [int(base * width) for base, width in zip(_PLANES, widths, strict=True)]
    channels = min(64, planes[0])
    blocks = [BlockSpec("stage0", in_channels, channels, 2, kind="mobileone")]
    for stage, (depth, wide) in enumerate(zip(_DEPTHS, planes, strict=True), start=1):
        for index in range(depth):
            stride = 2 if index == 0 else 1
            block = partial(BlockSpec, in_channels=channels, kind="mobileone", copies=copies)
            places = (f"stage{stage}.{2 * index + half}" for half in (0, 1))
            deep, point = places
            blocks += [
                block(deep, out_channels=channels, stride=stride, groups=channels),
                block(point, out_channels=wide, stride=1, kernel=1),
            ]
            channels = wide
    return Architecture(name, tuple(blocks), num_classes)


MOBILEONE = {
    "MobileOne-S0": partial(mobileone, "MobileOne-S0", widths=(0.75, 1.0, 1.0, 2.0), copies=4)
}
