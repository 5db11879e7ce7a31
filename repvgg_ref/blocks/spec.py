"""What a block is, without its weights: the shape of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SqueezeExcitation = Literal["none", "before_relu", "after_relu"]


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One 3x3 layer of the plain network, and the branches it is trained with.

    Padding equals `dilation`, so a stride-1 block keeps height and width. The identity branch
    needs equal shapes at entry and exit (paper, section 3.2).
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int
    groups: int = 1
    dilation: int = 1
    se: SqueezeExcitation = "none"
    se_channels: int = 0
    has_1x1: bool = True
    has_identity: bool = False
