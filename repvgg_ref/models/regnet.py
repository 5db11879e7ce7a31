"""RegNetX: residual bottlenecks of one width a stage, whose widths follow a line.

Source: Radosavovic et al., "Designing Network Design Spaces" (arXiv 2003.13678), section 3.3 and
Table 8 (X models: bottleneck ratio 1, no squeeze-and-excitation). Keys are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby

import numpy as np

from repvgg_ref.models.baselines import Layer, conv_bn, conv_node, head_nodes
from repvgg_ref.models.graph import INPUT, OUTPUT, Graph, Node
from repvgg_ref.models.layers import AddRelu

STEM = 32
MULTIPLE = 8  # of which all widths are


def regnet(
    name: str,
    *,
    depth: int,
    initial: int,
    slope: float,
    step: float,
    group_width: int,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Graph:
    """A RegNetX for images of any `size`.

    Parameters
    ----------
    depth : int
        Residual blocks in all.
    initial, slope, step : numbers
        ``w_0, w_a, w_m``: block j wants ``w_0 + w_a j`` channels and gets the nearest of
        ``w_0 w_m^k`` (equations 2 to 4).
    group_width : int
        Channels in a group of the 3x3 convolutions, all of them where a stage has fewer.
    """
    stem = conv_bn("stem", in_channels, Layer(3, STEM, 2), "relu")
    nodes = [conv_node(stem, INPUT, "stem.0", "stem.1", "stem")]
    channels = STEM
    for stage, (wide, count) in enumerate(stages(depth, initial, slope, step), start=1):
        width = min(group_width, wide)
        outputs = max(width, round(wide / width) * width)
        for index in range(count):
            block, stride = f"block{stage}.{index}", 2 if index == 0 else 1
            key = f"trunk_output.block{stage}.block{stage}-{index}"
            layer = Layer(3, outputs, stride, outputs // width)
            nodes += _bottleneck(block, nodes[-1].name, channels, layer, key)
            channels = outputs
    return Graph(name, (*nodes, *head_nodes(nodes[-1].name, channels, num_classes, "fc")))


def stages(depth: int, initial: int, slope: float, step: float) -> list[tuple[int, int]]:
    """Width and number of blocks of every stage: blocks of equal width are one."""
    wanted = initial + slope * np.arange(depth)
    powers = np.round(np.log(wanted / initial) / np.log(step))
    widths = np.round(initial * step**powers / MULTIPLE).astype(int) * MULTIPLE
    return [(width, len(list(same))) for width, same in groupby(widths.tolist())]


def _bottleneck(name: str, source: str, channels: int, square: Layer, key: str) -> list[Node]:
    """1x1, grouped 3x3, 1x1, all of one width; the shortcut as in ResNet."""
    nodes, shortcut, last, inputs = [], source, source, channels
    if square.stride != 1 or channels != square.outputs:
        shortcut = f"{name}.proj"
        spec = conv_bn(shortcut, channels, Layer(1, square.outputs, square.stride), "none")
        nodes.append(conv_node(spec, source, f"{key}.proj.0", f"{key}.proj.1", f"{key}.proj"))
    point = Layer(1, square.outputs)
    for part, layer in zip("abc", (point, square, point), strict=True):
        spec = conv_bn(f"{name}.{part}", inputs, layer, "none" if part == "c" else "relu")
        own = f"{key}.f.{part}"
        nodes.append(conv_node(spec, last, f"{own}.0", f"{own}.1", own))
        last, inputs = spec.name, layer.outputs
    return [*nodes, Node(f"{name}.add", AddRelu(), (last, shortcut), keys=((OUTPUT, key),))]


REGNETS: Mapping[str, Callable[..., Graph]] = {
    "RegNetX-3.2GF": partial(
        regnet, "RegNetX-3.2GF", depth=25, initial=88, slope=26.31, step=2.25, group_width=48
    ),
    "RegNetX-12GF": partial(
        regnet, "RegNetX-12GF", depth=19, initial=168, slope=73.36, step=2.37, group_width=112
    ),
}
"""Name -> what makes the network of ``num_classes``, ``in_channels`` and ``size``."""
