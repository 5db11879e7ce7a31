"""What the paper compares RepVGG with: ResNet-18, -34, -50 and VGG-16, batch norm folded.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), Table 1, stride in the first 1x1
convolution of a bottleneck as there (3.9 GFLOPs; later code has it in the 3x3 one, 4.1); Simonyan
& Zisserman, "Very Deep Convolutional Networks" (arXiv 1409.1556), configuration D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError

INPUT = "input"
IN_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with bias, padding ``kernel // 2``; then plus `add`, then ReLU if `relu`."""

    name: str
    source: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    relu: bool = True
    add: str | None = None


@dataclass(frozen=True, slots=True)
class MaxPool:
    """The largest of each window; what it reads is not negative, so zeros may pad it."""

    name: str
    source: str
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True, slots=True)
class Network:
    """Layers in an order in which they can be computed, then a head of linear layers.

    The head reads the average over height and width (`averaged`), or all of (C, H, W) in that
    order; ReLU stands between its layers. `head` holds their output widths.
    """

    name: str
    layers: tuple[Conv | MaxPool, ...]
    head: tuple[int, ...]
    averaged: bool


def extents(network: Network, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Height, width and channels of every layer's output, and of ``"input"``."""
    found = {INPUT: (height, width, IN_CHANNELS)}
    for layer in network.layers:
        rows, columns, channels = found[layer.source]
        if isinstance(layer, Conv):
            padding, channels = layer.kernel // 2, layer.out_channels
        else:
            padding = layer.padding
        found[layer.name] = (
            (rows + 2 * padding - layer.kernel) // layer.stride + 1,
            (columns + 2 * padding - layer.kernel) // layer.stride + 1,
            channels,
        )
    return found


def network_shapes(network: Network, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Every array: ``<layer>.weight`` (O, C, K, K) or (O, features), and ``<layer>.bias`` (O,)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in network.layers:
        if isinstance(layer, Conv):
            kernel = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
            shapes |= {f"{layer.name}.weight": kernel, f"{layer.name}.bias": kernel[:1]}
    rows, columns, channels = extents(network, height, width)[network.layers[-1].name]
    features = channels if network.averaged else rows * columns * channels
    for index, outputs in enumerate(network.head):
        shapes |= {f"fc{index}.weight": (outputs, features), f"fc{index}.bias": (outputs,)}
        features = outputs
    return shapes


def network_macs(network: Network, height: int = 224, width: int = 224) -> int:
    """Multiply-accumulates of the convolutions and linear layers, one image."""
    sizes = extents(network, height, width)
    total = 0
    for name, shape in network_shapes(network, height, width).items():
        if name.endswith(".weight"):
            rows, columns, _ = sizes.get(name.removesuffix(".weight"), (1, 1, 0))
            total += math.prod(shape) * rows * columns
    return total


def random_network_params(
    network: Network, *, height: int = 224, width: int = 224, seed: int = 0, dtype: Any = np.float32
) -> dict[str, Array]:
    """Normal kernels of variance 2 / fan-in, so that activations neither vanish nor overflow."""
    rng = np.random.default_rng(seed)
    shapes = network_shapes(network, height, width)
    return {name: _draw(name, shape, rng, dtype) for name, shape in shapes.items()}


def comparison_network(name: str) -> Network:
    """The network called `name`, one of `COMPARISONS`; case does not matter.

    Raises
    ------
    CheckpointError
        If there is none of that name.
    """
    for known, network in COMPARISONS.items():
        if known.lower() == name.lower():
            return network
    raise CheckpointError(
        "there is no comparison network of that name", got=repr(name), wanted=", ".join(COMPARISONS)
    )


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator, dtype: Any) -> Array:
    if name.endswith(".bias"):
        return rng.normal(0, 0.1, shape).astype(dtype)
    scale = math.sqrt(2 / math.prod(shape[1:]))
    return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)


def _resnet(name: str, depths: tuple[int, ...], *, bottleneck: bool) -> Network:
    layers: list[Conv | MaxPool] = [
        Conv("conv1", INPUT, IN_CHANNELS, 64, kernel=7, stride=2),
        MaxPool("pool", "conv1", kernel=3, stride=2, padding=1),
    ]
    source, channels = "pool", 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for index in range(depth):
            block = f"layer{stage + 1}.{index}"
            stride = 2 if stage > 0 and index == 0 else 1
            outputs = 4 * width if bottleneck else width
            shortcut = source
            if stride != 1 or channels != outputs:
                shortcut = f"{block}.downsample"
                layers.append(Conv(shortcut, source, channels, outputs, 1, stride, relu=False))
            kernels = ((1, width), (3, width), (1, outputs)) if bottleneck else ((3, width),) * 2
            for number, (kernel, out) in enumerate(kernels, start=1):
                add = shortcut if number == len(kernels) else None
                conv = Conv(f"{block}.conv{number}", source, channels, out, kernel, stride, add=add)
                layers.append(conv)
                source, channels, stride = conv.name, out, 1
    return Network(name, tuple(layers), (1000,), averaged=True)


def _vgg16() -> Network:
    layers: list[Conv | MaxPool] = []
    source, channels = INPUT, IN_CHANNELS
    for stage, (depth, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for index in range(1, depth + 1):
            layers.append(Conv(f"conv{stage}_{index}", source, channels, width))
            source, channels = layers[-1].name, width
        layers.append(MaxPool(f"pool{stage}", source, kernel=2, stride=2, padding=0))
        source = layers[-1].name
    return Network("VGG-16", tuple(layers), (4096, 4096, 1000), averaged=False)


COMPARISONS: Mapping[str, Network] = {
    network.name: network
    for network in (
        _resnet("ResNet-18", (2, 2, 2, 2), bottleneck=False),
        _resnet("ResNet-34", (3, 4, 6, 3), bottleneck=False),
        _resnet("ResNet-50", (3, 4, 6, 3), bottleneck=True),
        _vgg16(),
    )
}
