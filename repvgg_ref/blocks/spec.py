"""What a block is, without its weights: the shape of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SqueezeExcitation = Literal["none", "before_relu", "after_relu"]
Activation = Literal["relu", "none"]


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One layer: a linear expression of some `kind` (`catalogue`), then SE if any, then ReLU.

    Padding keeps height and width at stride 1, whatever `kernel` and `dilation` are. Kinds that are
    over-parameterised have their largest convolution in so many `copies`. `adds_input` is False
    where x could be added and is not, as in a block that was built with a stride and lost it later.
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int
    groups: int = 1
    dilation: int = 1
    se: SqueezeExcitation = "none"
    se_channels: int = 0
    kind: str = "repvgg"
    kernel: int = 3
    copies: int = 1
    activation: Activation = "relu"
    adds_input: bool = True

    @property
    def can_add_input(self) -> bool:
        """Whether x has the shape of y, as an identity branch needs (paper, section 3.2)."""
        fits = self.in_channels == self.out_channels and self.stride == 1
        return fits and self.adds_input
