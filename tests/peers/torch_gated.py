# mypy: allow-subclassing-any
# This project does not follow the types torch publishes: it is a witness, not a dependency.
"""RegNetX and EfficientNet in torch's own layers, written from the papers, torchvision's keys."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def unit(inputs: int, outputs: int, kernel: int, *, stride: int = 1, g: int = 1, act: Any) -> Any:
    """Convolution, batch norm, activation if any."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=g, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))


class XBlock(nn.Module):
    """Figure 4 of arXiv 2003.13678."""

    def __init__(self, inputs: int, width: int, stride: int, group_width: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == width
        self.proj = None if same else unit(inputs, width, 1, stride=stride, act=None)
        groups = width // min(group_width, width)
        parts = {
            "a": unit(inputs, width, 1, act=nn.ReLU),
            "b": unit(width, width, 3, stride=stride, g=groups, act=nn.ReLU),
            "c": unit(width, width, 1, act=None),
        }
        self.f = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Any) -> Any:
        return torch.relu((x if self.proj is None else self.proj(x)) + self.f(x))


class RegNet(nn.Module):
    """Stages given as (width, blocks)."""

    def __init__(self, stages: Sequence[tuple[int, int]], group_width: int, classes: int) -> None:
        super().__init__()
        self.stem = unit(3, 32, 3, stride=2, act=nn.ReLU)
        trunk, inputs = nn.Sequential(), 32
        for number, (width, depth) in enumerate(stages, start=1):
            stage = nn.Sequential()
            for index in range(depth):
                block = XBlock(inputs, width, 1 if index else 2, group_width)
                stage.add_module(f"block{number}-{index}", block)
                inputs = width
            trunk.add_module(f"block{number}", stage)
        self.trunk_output = trunk
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Any) -> Any:
        return self.fc(self.trunk_output(self.stem(x)).mean(dim=(2, 3)))


class Excite(nn.Module):
    """Gates of channels, SiLU between the two convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Any) -> Any:
        middle = nn.functional.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(middle))


class MBConv(nn.Module):
    """An inverted bottleneck with a gate."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = inputs * widening
        layers = [unit(inputs, wide, 1, act=nn.SiLU)] if widening > 1 else []
        layers += [
            unit(wide, wide, kernel, stride=stride, g=wide, act=nn.SiLU),
            Excite(wide, max(1, inputs // 4)),
            unit(wide, outputs, 1, act=None),
        ]
        self.block = nn.Sequential(*layers)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        return x + self.block(x) if self.same else self.block(x)


ROWS = (  # kernel, stride, channels, blocks, widening: Table 1 of arXiv 1905.11946
    (3, 1, 16, 1, 1),
    (3, 2, 24, 2, 6),
    (5, 2, 40, 2, 6),
    (3, 2, 80, 3, 6),
    (5, 1, 112, 3, 6),
    (5, 2, 192, 4, 6),
    (3, 1, 320, 1, 6),
)


class EfficientNet(nn.Module):
    """Without what is dropped at random."""

    def __init__(self, width: float, depth: float, classes: int) -> None:
        super().__init__()

        def eighths(channels: float) -> int:
            near = max(8, int(channels * width + 4) // 8 * 8)
            return near + 8 if near < 0.9 * channels * width else near

        inputs = eighths(32)
        stages: list[Any] = [unit(3, inputs, 3, stride=2, act=nn.SiLU)]
        for kernel, stride, channels, blocks, widening in ROWS:
            outputs, stage = eighths(channels), nn.Sequential()
            for index in range(math.ceil(blocks * depth)):
                stage.append(MBConv(inputs, outputs, kernel, 1 if index else stride, widening))
                inputs = outputs
            stages.append(stage)
        self.features = nn.Sequential(*stages, unit(inputs, 4 * inputs, 1, act=nn.SiLU))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(4 * inputs, classes))

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).mean(dim=(2, 3)))
