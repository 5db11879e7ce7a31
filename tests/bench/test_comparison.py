"""ResNet and VGG on our convolutions: their published sizes, and their values by the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from repvgg_ref.bench.graph import Graph
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.comparison import (
    COMPARISONS,
    INPUT,
    Conv,
    MaxPool,
    Network,
    comparison_network,
    extents,
    network_macs,
    network_shapes,
    random_network_params,
)
from repvgg_ref.ops import REFERENCE

# Parameters in millions (batch norm folded) and FLOPs in billions as the paper's Table 4 prints
# them; exact counts of the trained form, from which 1 per channel goes with each batch norm.
PUBLISHED = {
    "ResNet-18": (11.68, 1.8, 11_689_512 - 4_800),
    "ResNet-34": (21.78, 3.7, 21_797_672 - 8_512),
    "ResNet-50": (25.53, 3.9, 25_557_032 - 26_560),
    "VGG-16": (138.35, 15.5, 138_357_544),
}

# Everything at once: a strided shortcut, readers of one output with borders 0 and 1, two pools, an
# output that is needed again after several others, a head of two layers on all pixels.
SMALL = Network(
    "small",
    (
        Conv("stem", INPUT, 3, 8, kernel=7, stride=2),
        MaxPool("pool", "stem", kernel=3, stride=2, padding=1),
        Conv("a", "pool", 8, 8, kernel=3),
        Conv("b", "a", 8, 8, kernel=3, add="pool"),
        Conv("down", "b", 8, 16, kernel=1, stride=2, relu=False),
        Conv("c", "b", 8, 4, kernel=1),
        Conv("d", "c", 4, 4, kernel=3, stride=2),
        Conv("e", "d", 4, 16, kernel=1, add="down"),
        MaxPool("last", "e", kernel=2, stride=2, padding=0),
    ),
    head=(12, 5),
    averaged=False,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    network = COMPARISONS[name]
    millions, billions, exact = PUBLISHED[name]
    shapes = network_shapes(network, 224, 224)
    params = sum(int(np.prod(shape)) for shape in shapes.values())
    assert params == exact
    assert params // 10_000 == round(100 * millions)
    assert round(network_macs(network) / 1e9, 1) == billions


def by_the_reference(network: Network, params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """NCHW, one operator after the other, nothing shared with the graph but the specs."""
    found = {INPUT: x}
    for layer in network.layers:
        y = found[layer.source]
        if isinstance(layer, Conv):
            y, _ = REFERENCE.conv2d_forward(
                y,
                params[f"{layer.name}.weight"],
                params[f"{layer.name}.bias"],
                stride=layer.stride,
                padding=layer.kernel // 2,
                dilation=1,
                groups=1,
            )
            y = y + found[layer.add] if layer.add else y
            y = np.maximum(y, 0) if layer.relu else y
        else:
            side = ((0, 0), (0, 0), (layer.padding,) * 2, (layer.padding,) * 2)
            padded = np.pad(y, side, constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (layer.kernel,) * 2, (2, 3))
            y = windows[:, :, :: layer.stride, :: layer.stride].max(axis=(4, 5))
        found[layer.name] = y
    y = y.mean((2, 3)) if network.averaged else y.reshape(len(y), -1)
    for index in range(len(network.head)):
        y = y @ params[f"fc{index}.weight"].T + params[f"fc{index}.bias"]
        y = np.maximum(y, 0) if index < len(network.head) - 1 else y
    return np.asarray(y)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd4"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 38)])
def test_values_are_the_references(height: int, width: int, algorithm: str, threads: int) -> None:
    params = random_network_params(SMALL, height=height, width=width)
    x = np.random.default_rng(1).standard_normal((3, 3, height, width), np.float32)
    graph = Graph(SMALL, params, x.shape, threads=threads, algorithm=algorithm)
    wide = {name: array.astype(np.float64) for name, array in params.items()}
    wanted = by_the_reference(SMALL, wide, x.astype(np.float64))
    for _ in range(2):  # buffers are used again
        assert np.abs(graph.run(x) - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_a_deep_residual_network_is_the_references() -> None:
    network = COMPARISONS["ResNet-50"]
    params = random_network_params(network, height=32, width=32)
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32), np.float32)
    wanted = by_the_reference(network, params, x)
    got = Graph(network, params, x.shape, threads=1).run(x)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_the_input_is_left_alone_and_needed_buffers_only_are_held() -> None:
    network = COMPARISONS["ResNet-50"]
    x = np.zeros((1, 3, 64, 64), np.float32)
    x.flags.writeable = False
    graph = Graph(network, random_network_params(network, height=64, width=64), x.shape, threads=1)
    graph.run(x)
    sizes = [math.prod(extent) for extent in extents(network, 64, 64).values()]
    assert graph.buffer_numbers < sum(sizes) / 4
    assert graph.buffer_numbers >= max(sizes)


def test_names_are_found_whatever_their_case() -> None:
    assert comparison_network("resnet-18").name == "ResNet-18"
    with pytest.raises(CheckpointError, match="VGG-16"):
        comparison_network("VGG-19")
