"""RepViT-M0.9 to -M2.3: token mixers that are re-parameterised, channel mixers with a shortcut.

Source: Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective" (arXiv 2307.09283, figure
2 and section 3), and the published code, whose names the arrays have: without its second head,
which learns from a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.baselines import Layer, conv_bn
from repvgg_ref.models.gated import Add, Gate, Gelu
from repvgg_ref.models.graph import INPUT, OUTPUT, Graph, Node
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Block, GlobalAvgPool

_NARROWING, _WIDENING = 4, 2  # of a gate's channels, and of a channel mixer's
_MULTIPLE = 8  # of channels inside a gate


class Row(NamedTuple):
    """One block: its output channels, whether it has a gate, its stride."""

    channels: int
    gated: bool
    stride: int


def rows(widths: tuple[int, ...], depths: tuple[int, ...]) -> list[Row]:
    """Every stage but the first begins with a stride; every other block of a stage has a gate.

    Before a stride there is one more block, without a gate.
    """
    found: list[Row] = []
    last = len(widths) - 1
    for stage, (wide, depth) in enumerate(zip(widths, depths, strict=True)):
        found += [Row(wide, gated=False, stride=2)] if stage else []
        found += [Row(wide, gated=index % 2 == 0, stride=1) for index in range(depth)]
        found += [Row(wide, gated=False, stride=1)] if stage < last else []
    return found


def repvit(
    name: str,
    *,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Graph:
    """A RepViT for images of any `size`.

    Parameters
    ----------
    widths : integers
        Channels of each stage.
    depths : integers
        Blocks of each stage, but for those that stand before and at a stride.
    """
    channels = widths[0]
    first = conv_bn("stem0", in_channels, Layer(3, channels // 2, 2), "none")
    second = conv_bn("stem1", channels // 2, Layer(3, channels, 2), "none")
    nodes = [
        _node(first, INPUT, "features.0.0"),
        Node("stem0.gelu", Gelu(), ("stem0",), keys=((OUTPUT, "features.0.1"),)),
        _node(second, "stem0.gelu", "features.0.2"),
    ]
    for number, row in enumerate(rows(widths, depths), start=1):
        nodes += _token_mixer(number, nodes[-1].name, channels, row)
        nodes += _channel_mixer(number, nodes[-1].name, row.channels)
        channels = row.channels
    key = "classifier.classifier"
    keys = (("bn", f"{key}.bn"), ("", f"{key}.l"), ("deploy", "classifier"))
    nodes += [
        Node("pool", GlobalAvgPool(), (nodes[-1].name,)),
        Node("linear", NormLinear(channels, num_classes), ("pool",), 1.0, keys=keys),
    ]
    return Graph(name, tuple(nodes))


def _token_mixer(number: int, source: str, channels: int, row: Row) -> list[Node]:
    """RepVGGDW, or a depthwise convolution with a stride and a pointwise one; a gate between."""
    name, key = f"block{number}", f"features.{number}.token_mixer"
    kind = "repvit" if row.stride == 1 else "conv-bn"
    layer = Layer(3, channels, row.stride, groups=channels, kind=kind)
    nodes = [_node(conv_bn(f"{name}.token", channels, layer, "none"), source, f"{key}.0")]
    if row.gated:
        gate = Gate(channels, _narrow(channels), relu=True)
        keys = ((OUTPUT, f"{key}.1"), ("down", f"{key}.1.fc1"), ("up", f"{key}.1.fc2"))
        nodes.append(Node(f"{name}.gate", gate, (nodes[-1].name,), keys=keys))
    if row.stride > 1:
        spec = conv_bn(f"{name}.widen", channels, Layer(1, row.channels), "none")
        nodes.append(_node(spec, nodes[-1].name, f"{key}.2"))
    return nodes


def _narrow(channels: int) -> int:
    """A quarter of the channels, to the nearest multiple of 8 but not none: timm's rule for gates.

    Not EfficientNet's, which never takes off more than a tenth.
    """
    return max(_MULTIPLE, (channels // _NARROWING + _MULTIPLE // 2) // _MULTIPLE * _MULTIPLE)


def _channel_mixer(number: int, source: str, channels: int) -> list[Node]:
    """``x + W2 GELU(W1 x)``, a batch norm behind each convolution."""
    name, key, wide = f"block{number}", f"features.{number}.channel_mixer", _WIDENING * channels
    expand = conv_bn(f"{name}.expand", channels, Layer(1, wide), "none")
    project = conv_bn(f"{name}.project", wide, Layer(1, channels), "none")
    return [
        _node(expand, source, f"{key}.m.0"),
        Node(f"{name}.gelu", Gelu(), (expand.name,), keys=((OUTPUT, f"{key}.m.1"),)),
        _node(project, f"{name}.gelu", f"{key}.m.2"),
        Node(f"{name}.add", Add(), (project.name, source), keys=((OUTPUT, key),)),
    ]


def _node(spec: BlockSpec, source: str, key: str) -> Node:
    """A block, whose fused convolution takes the place of its module."""
    keys = {"conv": f"{key}.c", "bn": f"{key}.bn", "fused": key}
    if spec.kind == "repvit":
        keys = {
            "dense.conv": f"{key}.conv.c",
            "dense.bn": f"{key}.conv.bn",
            "point": f"{key}.conv1",
            "bn": f"{key}.bn",
            "fused": key,
        }
    return Node(spec.name, Block(spec), (source,), keys=tuple(keys.items()))


REPVITS: Mapping[str, Callable[..., Graph]] = {
    name: partial(repvit, name, widths=widths, depths=depths)
    for name, widths, depths in (
        ("RepViT-M0.9", (48, 96, 192, 384), (2, 2, 14, 2)),
        ("RepViT-M1.0", (56, 112, 224, 448), (2, 2, 14, 2)),
        ("RepViT-M1.1", (64, 128, 256, 512), (2, 2, 12, 2)),
        ("RepViT-M1.5", (64, 128, 256, 512), (4, 4, 24, 4)),
        ("RepViT-M2.3", (80, 160, 320, 640), (6, 6, 34, 2)),
    )
}
"""Name -> what makes the network of ``num_classes``, ``in_channels`` and ``size``."""
