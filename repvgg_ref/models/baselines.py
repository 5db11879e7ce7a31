"""What the paper compares RepVGG with: ResNet-18, -34, -50 and VGG-16, as graphs.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), Table 1, stride in the first 1x1
convolution of a bottleneck as there (3.9 GFLOPs; later code has it in the 3x3 one, 4.1); Simonyan
& Zisserman, "Very Deep Convolutional Networks" (arXiv 1409.1556), configuration D, which has no
batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.graph import INPUT, Graph, Node
from repvgg_ref.models.layers import AddRelu, Block, Flatten, GlobalAvgPool, Linear, MaxPool

HIDDEN = 4096  # features of VGG's two hidden linear layers


def resnet(
    name: str,
    *,
    depths: Sequence[int],
    bottleneck: bool,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Graph:
    """A residual network for images of any `size`.

    Parameters
    ----------
    depths : sequence of int
        Residual blocks in each stage; stages have 64, 128, 256, ... channels.
    bottleneck : bool
        Blocks of 1x1, 3x3 and 1x1 with four times the channels, instead of two 3x3.
    """
    stem = BlockSpec("conv1", in_channels, 64, 2, kind="conv-bn", kernel=7)
    nodes = [
        Node("conv1", Block(stem), (INPUT,)),
        Node("maxpool", MaxPool(kernel=3, stride=2, padding=1), ("conv1",)),
    ]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        kernels = ((1, width), (3, width), (1, 4 * width)) if bottleneck else ((3, width),) * 2
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            block = f"layer{stage + 1}.{index}"
            nodes += residual_block(block, nodes[-1].name, channels, kernels, stride)
            channels = kernels[-1][1]
    pool = Node("pool", GlobalAvgPool(), (nodes[-1].name,))
    head = Node("linear", Linear(channels, num_classes), ("pool",), loss_weight=1.0)
    return Graph(name, (*nodes, pool, head))


def residual_block(
    name: str, source: str, channels: int, kernels: Sequence[tuple[int, int]], stride: int
) -> list[Node]:
    """Convolutions (kernel, output channels), the first one strided, and a shortcut around them.

    The shortcut is the input itself, or a 1x1 convolution where shapes differ. Figure 5 of He et
    al.; the last node is ``name.add``.
    """
    nodes, shortcut, last, inputs = [], source, source, channels
    if stride != 1 or channels != kernels[-1][1]:
        shortcut = f"{name}.downsample"
        nodes.append(_conv_bn(shortcut, source, channels, kernels[-1][1], 1, stride, relu=False))
    for number, (kernel, outputs) in enumerate(kernels, start=1):
        conv, relu = f"{name}.conv{number}", number < len(kernels)
        nodes.append(_conv_bn(conv, last, inputs, outputs, kernel, stride, relu=relu))
        last, inputs, stride = conv, outputs, 1
    return [*nodes, Node(f"{name}.add", AddRelu(), (last, shortcut))]


def vgg(
    name: str,
    *,
    depths: Sequence[int],
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
) -> Graph:
    """A VGG for images of `size` pixels a side, which its first linear layer must know.

    Parameters
    ----------
    depths : sequence of int
        Convolutions before each pool; stages have 64, 128, 256, 512, 512 channels.
    """
    nodes: list[Node] = []
    last, channels = INPUT, in_channels
    for stage, depth in enumerate(depths, start=1):
        width = min(32 << stage, 512)
        for index in range(1, depth + 1):
            spec = BlockSpec(f"conv{stage}_{index}", channels, width, 1, kind="conv-bias")
            nodes.append(Node(spec.name, Block(spec), (last,)))
            last, channels = spec.name, width
        nodes.append(Node(f"pool{stage}", MaxPool(kernel=2, stride=2), (last,)))
        last, size = nodes[-1].name, size // 2
    features = channels * size * size
    return Graph(
        name,
        (
            *nodes,
            Node("flatten", Flatten(), (last,)),
            Node("fc0", Linear(features, HIDDEN, relu=True), ("flatten",)),
            Node("fc1", Linear(HIDDEN, HIDDEN, relu=True), ("fc0",)),
            Node("fc2", Linear(HIDDEN, num_classes), ("fc1",), loss_weight=1.0),
        ),
    )


def _conv_bn(
    name: str, source: str, inputs: int, outputs: int, kernel: int, stride: int, *, relu: bool
) -> Node:
    spec = BlockSpec(
        name,
        inputs,
        outputs,
        stride,
        kind="conv-bn",
        kernel=kernel,
        activation="relu" if relu else "none",
    )
    return Node(name, Block(spec), (source,))


BASELINES: Mapping[str, Callable[..., Graph]] = {
    "ResNet-18": partial(resnet, "ResNet-18", depths=(2, 2, 2, 2), bottleneck=False),
    "ResNet-34": partial(resnet, "ResNet-34", depths=(3, 4, 6, 3), bottleneck=False),
    "ResNet-50": partial(resnet, "ResNet-50", depths=(3, 4, 6, 3), bottleneck=True),
    "VGG-16": partial(vgg, "VGG-16", depths=(2, 2, 3, 3, 3)),
}
"""Name -> what makes the network of ``num_classes``, ``in_channels`` and ``size``."""
