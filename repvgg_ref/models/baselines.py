"""What the paper compares RepVGG with: ResNet, ResNeXt and VGG-16, as graphs.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), Table 1, stride in the first 1x1
convolution of a bottleneck as there (3.9 GFLOPs; torchvision has it in the 3x3 one, 4.1); Xie et
al., "Aggregated Residual Transformations" (arXiv 1611.05431), Table 1, stride in the 3x3 one;
Simonyan & Zisserman, "Very Deep Convolutional Networks" (arXiv 1409.1556), configuration D, which
has no batch norm. Keys are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.blocks.spec import Activation, BlockSpec
from repvgg_ref.models.geometry import Geometry
from repvgg_ref.models.graph import INPUT, OUTPUT, Graph, Network, Node
from repvgg_ref.models.layers import AddRelu, Block, Flatten, GlobalAvgPool, Linear, MaxPool

HIDDEN = 4096  # features of VGG's two hidden linear layers


class Layer(NamedTuple):
    """A convolution of a residual block."""

    kernel: int
    outputs: int
    stride: int = 1
    groups: int = 1
    kind: str = "conv-bn"


def resnet(
    name: str,
    *,
    depths: Sequence[int],
    bottleneck: bool,
    groups: int = 1,
    group_width: int = 64,
    strides: tuple[int, int] = (2, 1),
    kind: str = "conv-bn",
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
    groups, group_width : int
        Of the 3x3 convolutions in the first stage; groups become wider as stages do.
    strides : two ints
        Of the first two convolutions where a stage begins, but for the first stage.
    kind : str
        Of a bottleneck's 3x3 convolutions, a name in `blocks.catalogue.KINDS`.
    """
    stem = BlockSpec("conv1", in_channels, 64, 2, kind="conv-bn", kernel=7)
    nodes = [
        conv_node(stem, INPUT, "conv1", "bn1"),
        Node("maxpool", MaxPool(kernel=3, stride=2, padding=1), ("conv1",)),
    ]
    channels = 64
    for stage, depth in enumerate(depths):
        outputs, width = 64 << stage, (group_width * groups) << stage
        for index in range(depth):
            first, second = strides if stage > 0 and index == 0 else (1, 1)
            if bottleneck:
                square = Layer(3, width, second, groups, kind)
                layers = [Layer(1, width, first), square, Layer(1, 4 * outputs)]
            else:
                layers = [Layer(3, outputs, first), Layer(3, outputs, second)]
            nodes += residual_block(f"layer{stage + 1}.{index}", nodes[-1].name, channels, layers)
            channels = layers[-1].outputs
    return Graph(name, (*nodes, *head_nodes(nodes[-1].name, channels, num_classes, "fc")))


def residual_block(name: str, source: str, channels: int, layers: Sequence[Layer]) -> list[Node]:
    """Convolutions, ReLU between them, and a shortcut around them; the last node is ``name.add``.

    The shortcut is the input itself, or a 1x1 convolution where shapes differ (He et al., Figure
    5).
    """
    nodes, shortcut, last, inputs = [], source, source, channels
    stride = 1
    for layer in layers:
        stride *= layer.stride
    if stride != 1 or channels != layers[-1].outputs:
        shortcut = f"{name}.downsample"
        spec = conv_bn(shortcut, channels, Layer(1, layers[-1].outputs, stride), "none")
        nodes.append(conv_node(spec, source, f"{shortcut}.0", f"{shortcut}.1", shortcut))
    for number, layer in enumerate(layers, start=1):
        conv = f"{name}.conv{number}"
        spec = conv_bn(conv, inputs, layer, "relu" if number < len(layers) else "none")
        norm = f"{name}.bn{number}"
        nodes.append(conv_node(spec, last, conv, norm, norm if number == len(layers) else ""))
        last, inputs = conv, layer.outputs
    return [*nodes, Node(f"{name}.add", AddRelu(), (last, shortcut))]


def conv_bn(name: str, inputs: int, layer: Layer, activation: Activation) -> BlockSpec:
    """The block that computes a `Layer`."""
    return BlockSpec(
        name,
        inputs,
        layer.outputs,
        layer.stride,
        layer.groups,
        kind=layer.kind,
        kernel=layer.kernel,
        activation=activation,
    )


def conv_node(spec: BlockSpec, source: str, conv: str, norm: str = "", output: str = "") -> Node:
    """A block's node, and how its convolution and batch norm are called.

    A kind of block that has published keys keeps them, behind the convolution's. `output` is the
    module that gives the block's output, where one does.
    """
    keys = {"conv": conv, "bn": norm} | ({OUTPUT: output} if output else {})
    if KINDS[spec.kind].keys:
        keys = {ours: f"{conv}.{theirs}" for ours, theirs in _leaves(spec).items()}
    return Node(spec.name, Block(spec), (source,), keys=tuple(keys.items()))


def _leaves(spec: BlockSpec) -> dict[str, str]:
    """Our leaves of a re-parameterisable block -> their published names."""
    parts = {name.rpartition(".")[0] for name in Block(spec).shapes("train")}
    kind = KINDS[spec.kind]
    found = {"fused": kind.fused}
    for start, theirs in kind.keys.items():
        found |= {p: theirs + p[len(start) :] for p in parts if f"{p}.".startswith(f"{start}.")}
    return found


def head_nodes(source: str, features: int, num_classes: int, key: str) -> list[Node]:
    """The mean of each channel, and a linear layer called `key`."""
    linear = Linear(features, num_classes)
    return [
        Node("pool", GlobalAvgPool(), (source,)),
        Node("linear", linear, ("pool",), loss_weight=1.0, keys=(("", key),)),
    ]


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
    last, channels, place = INPUT, in_channels, 0
    for stage, depth in enumerate(depths, start=1):
        width = min(32 << stage, 512)
        for index in range(1, depth + 1):
            spec = BlockSpec(f"conv{stage}_{index}", channels, width, 1, kind="conv-bias")
            nodes.append(conv_node(spec, last, f"features.{place}"))
            last, channels, place = spec.name, width, place + 2
        nodes.append(Node(f"pool{stage}", MaxPool(kernel=2, stride=2), (last,)))
        last, size, place = nodes[-1].name, size // 2, place + 1
    features = channels * size * size
    nodes.append(Node("flatten", Flatten(), (last,)))
    for number, outputs in enumerate((HIDDEN, HIDDEN, num_classes)):
        linear, is_last = Linear(features, outputs, relu=number < 2), number == 2
        keys = (("", f"classifier.{3 * number}"),)
        nodes.append(Node(f"fc{number}", linear, (nodes[-1].name,), float(is_last), keys=keys))
        features = outputs
    return Graph(name, tuple(nodes))


def torchvision_geometry(network: Network) -> Geometry:
    """Where torchvision's code has a stride that `network` has elsewhere.

    A bottleneck's is in the 3x3 convolution there, and no file of arrays can tell.
    """
    strides: dict[str, int] = {}
    for spec, after in zip(network.blocks, network.blocks[1:], strict=False):
        if spec.name.endswith(".conv1") and (spec.kernel, spec.stride) == (1, 2):
            strides |= {spec.name: 1, after.name: 2}
    return Geometry(strides)


_RESNETS = {
    "18": ((2, 2, 2, 2), False),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
    "101": ((3, 4, 23, 3), True),
    "152": ((3, 8, 36, 3), True),
}
_RESNEXT = partial(resnet, bottleneck=True, groups=32, group_width=4, strides=(1, 2))

BASELINES: Mapping[str, Callable[..., Graph]] = {
    **{
        name: partial(resnet, name, depths=depths, bottleneck=bottleneck)
        for number, (depths, bottleneck) in _RESNETS.items()
        for name in (f"ResNet-{number}",)
    },
    "ResNet-50-RepVGG": partial(
        resnet, "ResNet-50-RepVGG", depths=(3, 4, 6, 3), bottleneck=True, kind="repvgg"
    ),
    "ResNeXt-50": partial(_RESNEXT, "ResNeXt-50", depths=(3, 4, 6, 3)),
    "ResNeXt-101": partial(_RESNEXT, "ResNeXt-101", depths=(3, 4, 23, 3)),
    "VGG-16": partial(vgg, "VGG-16", depths=(2, 2, 3, 3, 3)),
}
"""Name -> what makes the network of ``num_classes``, ``in_channels`` and ``size``."""
