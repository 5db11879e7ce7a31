# mypy: allow-subclassing-any
# This project does not follow the types torch publishes: it is a witness, not a dependency.
"""The rivals in torch's own layers, written from the papers under torchvision's keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from repvgg_ref.models.network import Model


class Shortcut(nn.Module):
    """``relu(body(x) + shortcut(x))``: children as `layers` names them, in that order."""

    def __init__(self, layers: Sequence[tuple[str, Any]], downsample: Any) -> None:
        super().__init__()
        self.order = [name for name, _ in layers]
        for name, layer in layers:
            self.add_module(name, layer)
        self.downsample = downsample

    def forward(self, x: Any) -> Any:
        y = x
        for name in self.order:
            y = getattr(self, name)(y)
            if name.startswith("bn") and name != self.order[-1]:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class RepVGGBlock(nn.Module):
    """Three branches without the ReLU, under the official names; x keeps its shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, kernel in (("rbr_dense", 3), ("rbr_1x1", 1)):
            conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
            self.add_module(name, nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(width)}))
        self.rbr_identity = nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        branches = (self.rbr_dense, self.rbr_1x1)
        y = sum((branch["bn"](branch["conv"](x)) for branch in branches), self.rbr_identity(x))
        return torch.relu(y)


def bottleneck(inputs: int, width: int, outputs: int, first: int, second: int, g: int) -> Any:
    """1x1, 3x3, 1x1; `first` and `second` are the strides of the first two."""
    layers = [
        ("conv1", nn.Conv2d(inputs, width, 1, first, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("conv2", nn.Conv2d(width, width, 3, second, 1, groups=g, bias=False)),
        ("bn2", nn.BatchNorm2d(width)),
        ("conv3", nn.Conv2d(width, outputs, 1, bias=False)),
        ("bn3", nn.BatchNorm2d(outputs)),
    ]
    return Shortcut(layers, projection(inputs, outputs, first * second))


def reparameterised(inputs: int, width: int, outputs: int, first: int, second: int, g: int) -> Any:
    """A bottleneck whose 3x3 is a RepVGG block."""
    block = bottleneck(inputs, width, outputs, first, second, g)
    block.conv2, block.bn2 = RepVGGBlock(width), None
    block.order.remove("bn2")
    return block


def basic(inputs: int, width: int, outputs: int, first: int, second: int, g: int) -> Any:
    """Two 3x3."""
    layers = [
        ("conv1", nn.Conv2d(inputs, width, 3, first, 1, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("conv2", nn.Conv2d(width, width, 3, second, 1, bias=False)),
        ("bn2", nn.BatchNorm2d(width)),
    ]
    return Shortcut(layers, projection(inputs, width, first * second))


def projection(inputs: int, outputs: int, stride: int) -> Any:
    if inputs == outputs and stride == 1:
        return None
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(
        self,
        block: Callable[..., Any],
        depths: Sequence[int],
        *,
        widening: int,
        strides: tuple[int, int] = (2, 1),
        groups: int = 1,
        group_width: int = 64,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels, self.depth = 64, len(depths)
        for stage, depth in enumerate(depths):
            layers, outputs = [], 64 * 2**stage * widening
            for index in range(depth):
                first, second = strides if stage and not index else (1, 1)
                width = group_width * groups * 2**stage
                layers.append(block(channels, width, outputs, first, second, groups))
                channels = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = nn.functional.max_pool2d(y, 3, 2, 1)
        for stage in range(self.depth):
            y = getattr(self, f"layer{stage + 1}")(y)
        return self.fc(y.mean(dim=(2, 3)))


class VGG16(nn.Module):
    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        layers: list[Any] = []
        channels = 3
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = [nn.Linear(512 * (size // 32) ** 2, 4096), nn.ReLU(), nn.Identity()]
        hidden += [nn.Linear(4096, 4096), nn.ReLU(), nn.Identity()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(4096, classes))

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).flatten(1))


_50, _32X4D = (3, 4, 6, 3), {"strides": (1, 2), "groups": 32, "group_width": 4}
RESNETS: dict[str, tuple[Any, Sequence[int], dict[str, Any]]] = {
    "ResNet-18": (basic, (2, 2, 2, 2), {"widening": 1}),
    "ResNet-34": (basic, _50, {"widening": 1}),
    "ResNet-50": (bottleneck, _50, {"widening": 4}),
    "ResNet-101": (bottleneck, (3, 4, 23, 3), {"widening": 4}),
    "ResNet-152": (bottleneck, (3, 8, 36, 3), {"widening": 4}),
    "ResNet-50-RepVGG": (reparameterised, _50, {"widening": 4}),
    "ResNeXt-50": (bottleneck, _50, {"widening": 4, **_32X4D}),
    "ResNeXt-101": (bottleneck, (3, 4, 23, 3), {"widening": 4, **_32X4D}),
}


def build_torch(name: str, *, size: int, classes: int, depths: Sequence[int] | None = None) -> Any:
    """The network called `name`, or one of other `depths`, its weights as torch's layers start."""
    if name == "VGG-16":
        return VGG16(size, classes)
    block, published, settings = RESNETS[name]
    return ResNet(block, depths or published, classes=classes, **settings)


def filled(built: Any, model: Model) -> Any:
    """`built` with the arrays of a model in train form, and in their precision."""
    state = {key: torch.tensor(array) for key, array in model.state_dict().items()}
    dtype = next(array.dtype for array in state.values() if array.is_floating_point())
    built.to(dtype).load_state_dict(state, strict=True)
    return built
