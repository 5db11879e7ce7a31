# mypy: allow-subclassing-any
"""PSPNet on RepVGG in torch, written from the papers, with the keys of the official example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

BINS = (1, 2, 3, 6)


def conv_bn(inputs: int, outputs: int, **settings: Any) -> Any:
    pair = nn.Sequential()
    pair.add_module("conv", nn.Conv2d(inputs, outputs, bias=False, **settings))
    pair.add_module("bn", nn.BatchNorm2d(outputs))
    return pair


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        wide = {"kernel_size": 3, "stride": stride, "padding": dilation, "dilation": dilation}
        self.rbr_dense = conv_bn(inputs, outputs, **wide)
        self.rbr_1x1 = conv_bn(inputs, outputs, kernel_size=1, stride=stride)
        self.rbr_identity = None if first else nn.BatchNorm2d(outputs)

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return torch.relu(y if self.rbr_identity is None else y + self.rbr_identity(x))


class Pyramid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side),
                nn.Conv2d(channels, channels // 4, 1, bias=False),
                nn.BatchNorm2d(channels // 4),
                nn.ReLU(),
            )
            for side in BINS
        )

    def forward(self, x: Any) -> Any:
        floors = [
            functional.interpolate(each(x), x.shape[2:], mode="bilinear", align_corners=True)
            for each in self.features
        ]
        return torch.cat([x, *floors], 1)


def head(inputs: int, width: int, classes: int, dropout: float) -> Any:
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, classes, 1),
    )


class TorchPSPNet(nn.Module):
    """`depths` of stages 1 to 4, `channels` of stages 0 to 4."""

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        *,
        fast: bool,
        classes: int,
        width: int,
        aux: int,
    ) -> None:
        super().__init__()
        self.layer0 = Block(3, channels[0], 2, 1, first=True)
        for stage, depth in enumerate(depths, start=1):
            usual, stride = {3: (2, 1), 4: (4, 1)}.get(stage, (1, 2))
            blocks = []
            for index in range(depth):
                spared = fast and stage == 3 and index < depth - 4
                inputs = channels[stage - 1] if index == 0 else channels[stage]
                step = stride if index == 0 else 1
                dilation = 1 if spared else usual
                blocks.append(Block(inputs, channels[stage], step, dilation, first=index == 0))
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.ppm = Pyramid(channels[4])
        self.cls = head(channels[4] + 4 * (channels[4] // 4), width, classes, 0.0)
        self.aux = head(channels[3], aux, classes, 0.0)

    def forward(self, x: Any) -> tuple[Any, Any]:
        """Logits and auxiliary logits at full resolution."""
        size = [(n - 1) // 8 * 8 + 1 for n in x.shape[2:]]
        for stage in range(4):
            x = getattr(self, f"layer{stage}")(x)
        pair = self.cls(self.ppm(self.layer4(x))), self.aux(x)
        main, aux = (
            functional.interpolate(y, size, mode="bilinear", align_corners=True) for y in pair
        )
        return main, aux

    def loss(self, x: Any, labels: Any) -> Any:
        main, aux = (functional.cross_entropy(y, labels, ignore_index=255) for y in self.forward(x))
        return main + 0.4 * aux
