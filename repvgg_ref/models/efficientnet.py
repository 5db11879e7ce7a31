"""EfficientNet-B0 and -B3: inverted bottlenecks with depthwise convolutions, gates and SiLU.

Source: Tan & Le, "EfficientNet" (arXiv 1905.11946), Table 1, with width and depth multipliers of
its published code. Keys are torchvision's, whose batch norms have eps 1e-5 (B0, B3); TensorFlow's
have 1e-3. The publication trains with dropout and with stochastic depth that grows to 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.baselines import Layer, conv_bn, conv_node
from repvgg_ref.models.gated import Add, Dropout, Gate, Silu
from repvgg_ref.models.graph import INPUT, Graph, Node
from repvgg_ref.models.layers import GlobalAvgPool, Linear

STEM, MULTIPLE = 32, 8
DEEPEST_RATE = 0.2  # of stochastic depth, towards the last block
WIDENING = 4  # of the last 1x1 convolution


class Stage(NamedTuple):
    """A row of Table 1."""

    expansion: int
    kernel: int
    stride: int
    outputs: int
    blocks: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


def efficientnet(
    name: str,
    *,
    width: float,
    depth: float,
    dropout: float,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Graph:
    """An EfficientNet for images of any `size`.

    Parameters
    ----------
    width, depth : float
        What multiplies the channels and blocks of `STAGES`.
    dropout : float
        Share of the features that training leaves out, where it is asked to.
    """
    channels = rounded(STEM * width)
    stem = conv_bn("stem", in_channels, Layer(3, channels, 2), "none")
    nodes = _conv_silu(stem, INPUT, "features.0")
    total = sum(math.ceil(stage.blocks * depth) for stage in STAGES)
    done = 0
    for number, stage in enumerate(STAGES, start=1):
        wide = stage._replace(outputs=rounded(stage.outputs * width))
        for index in range(math.ceil(stage.blocks * depth)):
            its = wide._replace(stride=wide.stride if index == 0 else 1)
            place, rate = f"{number}.{index}", DEEPEST_RATE * done / total
            nodes += inverted_bottleneck(place, nodes[-1].name, channels, its, rate)
            channels, done = wide.outputs, done + 1
    top = conv_bn("top", channels, Layer(1, WIDENING * channels), "none")
    nodes += _conv_silu(top, nodes[-1].name, f"features.{len(STAGES) + 1}")
    linear = Linear(WIDENING * channels, num_classes)
    nodes += [
        Node("pool", GlobalAvgPool(), (nodes[-1].name,)),
        Node("dropout", Dropout(dropout), ("pool",)),
        Node("linear", linear, ("dropout",), 1.0, keys=(("", "classifier.1"),)),
    ]
    return Graph(name, tuple(nodes))


def inverted_bottleneck(
    place: str, source: str, channels: int, stage: Stage, rate: float
) -> list[Node]:
    """1x1 that widens, depthwise, gate, 1x1 that narrows; plus x where shapes allow it.

    Sandler et al., MobileNetV2 (arXiv 1801.04381), Figure 4d, with a gate.
    """
    name, key, part = f"block{place}", f"features.{place}.block", 0
    nodes, last, wide = list[Node](), source, rounded(channels * stage.expansion)
    if wide != channels:
        spec = conv_bn(f"{name}.expand", channels, Layer(1, wide), "none")
        nodes += _conv_silu(spec, last, f"{key}.0")
        last, part = nodes[-1].name, 1
    layer = Layer(stage.kernel, wide, stage.stride, groups=wide)
    nodes += _conv_silu(conv_bn(f"{name}.depthwise", wide, layer, "none"), last, f"{key}.{part}")
    keys = (("down", f"{key}.{part + 1}.fc1"), ("up", f"{key}.{part + 1}.fc2"))
    gate = Gate(wide, max(1, channels // 4))
    nodes.append(Node(f"{name}.gate", gate, (nodes[-1].name,), keys=keys))
    spec = conv_bn(f"{name}.project", wide, Layer(1, stage.outputs), "none")
    nodes.append(
        conv_node(spec, f"{name}.gate", f"{key}.{part + 2}.0", f"{key}.{part + 2}.1"),
    )
    if stage.stride == 1 and channels == stage.outputs:
        nodes.append(Node(f"{name}.add", Add(rate), (f"{name}.project", source)))
    return nodes


def rounded(channels: float) -> int:
    """The nearest multiple of 8, but not less than nine tenths of what was asked for."""
    nearest = max(MULTIPLE, int(channels + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return nearest if nearest >= 0.9 * channels else nearest + MULTIPLE


def _conv_silu(spec: BlockSpec, source: str, key: str) -> list[Node]:
    conv = conv_node(spec, source, f"{key}.0", f"{key}.1")
    return [conv, Node(f"{spec.name}.silu", Silu(), (spec.name,))]


EFFICIENTNETS: Mapping[str, Callable[..., Graph]] = {
    "EfficientNet-B0": partial(efficientnet, "EfficientNet-B0", width=1.0, depth=1.0, dropout=0.2),
    "EfficientNet-B3": partial(efficientnet, "EfficientNet-B3", width=1.2, depth=1.4, dropout=0.3),
}
"""Name -> what makes the network of ``num_classes``, ``in_channels`` and ``size``."""
