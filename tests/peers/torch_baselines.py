# mypy: allow-subclassing-any
# This project does not follow the types torch publishes: it is a witness, not a dependency.
"""ResNet and VGG in torch's own layers, written from the papers; arrays are matched by their place.

Batch norm stands behind each convolution of a ResNet, none in a VGG.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Block, Linear
from repvgg_ref.models.network import Model

_NORM = {"weight": "gamma", "bias": "beta"}


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """He et al., figure 5 left: two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inputs, width, 3, stride), nn.ReLU(), conv_bn(width, width, 3)
        )
        same = inputs == width and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, width, 1, stride)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Figure 5 right: 1x1, 3x3, 1x1 with four times the channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        first, second = conv_bn(inputs, width, 1, stride), conv_bn(width, width, 3)
        third = conv_bn(width, 4 * width, 1)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        same = inputs == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, 4 * width, 1, stride)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(block: Any, depths: tuple[int, ...], widening: int, classes: int) -> Any:
    layers = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            layers.append(block(channels, 64 * 2**stage, 2 if stage and not index else 1))
            channels = 64 * 2**stage * widening
    head = nn.Linear(channels, classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def vgg16(size: int, classes: int) -> Any:
    layers: list[Any] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    features = 512 * (size // 32) ** 2
    head = [nn.Linear(features, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, classes))


def build_torch(name: str, *, size: int, classes: int) -> Any:
    """The network called `name`, its weights as torch's layers start."""
    if name == "VGG-16":
        return vgg16(size, classes)
    block, depths, widening = {
        "ResNet-18": (Basic, (2, 2, 2, 2), 1),
        "ResNet-34": (Basic, (3, 4, 6, 3), 1),
        "ResNet-50": (Bottleneck, (3, 4, 6, 3), 4),
    }[name]
    return resnet(block, depths, widening, classes)


def places(built: Any, arch: Network) -> dict[str, str]:
    """Canonical name -> torch's, for every array.

    Layers of a block are matched in their order, its shortcut by name; every one is used once.
    """
    names = [node.name for node in arch.nodes if isinstance(node.op, Block | Linear)]
    shortcuts = iter([name for name in names if name.endswith("downsample")])
    others = iter([name for name in names if not name.endswith("downsample")])
    found: dict[str, str] = {}
    owner = ""
    for path, layer in built.named_modules():
        parts = [*dict(layer.named_parameters(recurse=False)), *dict(layer.named_buffers())]
        if isinstance(layer, nn.Conv2d | nn.Linear):
            owner = next(shortcuts if ".shortcut" in path else others)
            leaf = f"{owner}.conv" if isinstance(layer, nn.Conv2d) else owner
            found |= {f"{leaf}.{part}": f"{path}.{part}" for part in parts}
        elif isinstance(layer, nn.BatchNorm2d):
            found |= {f"{owner}.bn.{_NORM.get(part, part)}": f"{path}.{part}" for part in parts}
    assert not [*shortcuts, *others]
    return found


def filled(built: Any, model: Model) -> Any:
    """`built` with the arrays of a model in train form, and in their precision."""
    theirs = places(built, model.arch)
    assert theirs.keys() == model.params.keys()
    state = {theirs[name]: torch.tensor(array) for name, array in model.params.items()}
    dtype = state[theirs[f"{model.arch.head.name}.weight"]].dtype
    built.to(dtype).load_state_dict(state, strict=True)
    return built


def gradients(built: Any, arch: Network) -> Iterator[tuple[str, Any]]:
    """Canonical name and gradient of every array that is trained."""
    parameters = dict(built.named_parameters())
    for name, path in places(built, arch).items():
        if path in parameters:
            yield name, parameters[path].grad.numpy()
