"""The official RepVGG as a module, with the attributes that its code leaves on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def _conv_bn(i: int, o: int, k: int, stride: int, padding: int, groups: int) -> Any:
    found = nn.Sequential()
    found.add_module("conv", nn.Conv2d(i, o, k, stride, padding, groups=groups, bias=False))
    found.add_module("bn", nn.BatchNorm2d(o))
    return found


class SEBlock(nn.Module):  # type: ignore[misc]
    """Squeeze-and-excitation before the ReLU."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)
        self.input_channels = channels

    def forward(self, x: Any) -> Any:
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class RepVGGBlock(nn.Module):  # type: ignore[misc]
    """Activation and SE are registered before the branches; a missing identity is None."""

    def __init__(self, i: int, o: int, stride: int, groups: int, se: bool) -> None:
        super().__init__()
        self.deploy, self.groups, self.in_channels = False, groups, i
        self.nonlinearity = nn.ReLU()
        self.se = SEBlock(o, max(o // 16, 1)) if se else nn.Identity()
        self.rbr_identity = nn.BatchNorm2d(i) if i == o and stride == 1 else None
        self.rbr_dense = _conv_bn(i, o, 3, stride, 1, groups)
        self.rbr_1x1 = _conv_bn(i, o, 1, stride, 0, groups)

    def forward(self, x: Any) -> Any:
        same = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + same))


class RepVGG(nn.Module):  # type: ignore[misc]
    """Four stages of blocks, a mean and a linear layer."""

    def __init__(self, groups: dict[int, int], *, se: bool = False) -> None:
        super().__init__()
        self.deploy, self.use_se, self.use_checkpoint = False, se, False
        self.override_groups_map = dict(groups)
        self.in_planes, self.cur_layer_idx = 8, 1
        self.stage0 = RepVGGBlock(3, 8, 2, 1, se)
        for stage, (depth, width) in enumerate(zip((2, 3, 2, 1), (8, 16, 16, 32), strict=True)):
            blocks = []
            for place in range(depth):
                g = groups.get(self.cur_layer_idx, 1)
                blocks.append(RepVGGBlock(self.in_planes, width, 1 if place else 2, g, se))
                self.in_planes = width
                self.cur_layer_idx += 1
            setattr(self, f"stage{stage + 1}", nn.ModuleList(blocks))
        self.gap, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        x = self.stage0(x)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage:
                x = block(x)
        return self.linear(self.gap(x).flatten(1))
