"""PSPNet on a RepVGG backbone: a class for every pixel (paper, section 4.3).

Sources: Zhao et al., "Pyramid Scene Parsing Network" (arXiv 1612.01105), Figure 3; the official
RepVGG example of it, whose keys the arrays have; Ding et al. (arXiv 2101.03697), section 4.3:
"PSPNet-fast" dilates the last five layers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.architectures import NAMES, Architecture, architecture, plain_architecture
from repvgg_ref.models.baselines import Layer, conv_bn, conv_node
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat, ResizeAs, Zoom
from repvgg_ref.models.geometry import Geometry, with_geometry
from repvgg_ref.models.graph import INPUT, Graph, Node

PREFIX, FAST = "PSPNet-", "-fast"
BINS = (1, 2, 3, 6)
HEAD, AUX_HEAD = 512, 256  # channels
AUX_WEIGHT = 0.4
DROPOUT = 0.1
CITYSCAPES_CLASSES = 19
REDUCTION = 8  # of height and width, by stages 0 to 2
_DILATIONS = {3: 2, 4: 4}  # of stages that keep their size
FAST_BLOCKS = 4  # of stage 3 that the fast form dilates


def pspnet(
    backbone: Architecture,
    *,
    fast: bool = False,
    num_classes: int,
    head: int = HEAD,
    aux_head: int = AUX_HEAD,
) -> Graph:
    """The PSPNet on `backbone`, whose own head and auxiliary heads it does not have.

    Images must be ``8 k + 1`` pixels high and wide; so are the logits.

    Parameters
    ----------
    fast : bool
        Dilate the last four blocks of stage 3 and stage 4 only.
    head, aux_head : int
        Channels of the 3x3 convolutions before the classes.

    Raises
    ------
    ReportedError
        If `backbone` has not the stages 0 to 4, or fewer than four channels at its end.
    """
    blocks = dilated(backbone, fast=fast).blocks
    features, stage_3 = blocks[-1].out_channels, _last_of_stage(blocks, 3)
    if features < len(BINS):
        raise ReportedError("pspnet: too few channels to share out", got=features, wanted=">= 4")
    nodes, last = list[Node](), INPUT
    for spec in blocks:
        nodes.append(_backbone_node(spec, last))
        last = spec.name
        if spec is stage_3:
            nodes += _head_nodes("aux", last, spec.out_channels, aux_head, num_classes)
    pyramid = [part for n in range(len(BINS)) for part in _bin_nodes(n, last, features)]
    parts = [node.name for node in pyramid if isinstance(node.op, ResizeAs)]
    joined = Node("ppm", Concat(), (last, *parts))
    channels = features + len(BINS) * (features // len(BINS))
    ends = _head_nodes("cls", "ppm", channels, head, num_classes)
    name = PREFIX + backbone.name + (FAST if fast and backbone.name != "custom" else "")
    return Graph(
        name, (*nodes, *pyramid, joined, *ends), of_kind=backbone.kinds[0], reduction=REDUCTION
    )


def dilated(backbone: Architecture, *, fast: bool) -> Architecture:
    """`backbone` with stages 3 and 4 at the size of stage 2: stride 1, dilation 2 and 4.

    The first block of either gains no identity branch: it was built with stride 2.
    """
    stages = {
        n: [b.name for b in backbone.blocks if b.name.startswith(f"stage{n}.")] for n in range(1, 6)
    }
    if not all(stages[n] for n in range(1, 5)) or stages[5]:
        raise ReportedError(
            "pspnet: the backbone has other stages than a RepVGG",
            got=", ".join(block.name for block in backbone.blocks),
            wanted="stages 0 to 4",
        )
    strides = {name: 1 for n in _DILATIONS for name in stages[n]}
    wide = stages | {3: stages[3][-FAST_BLOCKS:]} if fast else stages
    dilations = {name: step for n, step in _DILATIONS.items() for name in wide[n]}
    found = with_geometry(backbone, Geometry(strides, dilations))
    assert isinstance(found, Architecture)
    return replace(found, aux_heads=())


def _last_of_stage(blocks: tuple[BlockSpec, ...], stage: int) -> BlockSpec:
    return [block for block in blocks if block.name.startswith(f"stage{stage}.")][-1]


def _backbone_node(spec: BlockSpec, source: str) -> Node:
    key = spec.name.replace("stage", "layer")
    node = conv_node(spec, source, key)
    gates = [(f"se.{layer}", f"{key}.se.{layer}") for layer in ("down", "up")]
    return replace(node, keys=(*node.keys, *gates)) if spec.se != "none" else node


def _bin_nodes(number: int, source: str, channels: int) -> list[Node]:
    """A floor of the pyramid: means, 1x1 convolution to a quarter of the channels, resized."""
    name = f"ppm.{number}"
    spec = conv_bn(name, channels, Layer(1, channels // len(BINS)), "relu")
    key = f"ppm.features.{number}"
    return [
        Node(f"{name}.pool", AdaptiveAvgPool(BINS[number]), (source,)),
        conv_node(spec, f"{name}.pool", f"{key}.1", f"{key}.2"),
        Node(f"{name}.resize", ResizeAs(), (name, source)),
    ]


def _head_nodes(head: str, source: str, inputs: int, width: int, classes: int) -> list[Node]:
    """3x3 convolution, dropout, a 1x1 convolution to the classes, at the images' size."""
    first = conv_bn(f"{head}.0", inputs, Layer(3, width), "relu")
    last = conv_bn(f"{head}.4", width, Layer(1, classes, kind="conv-bias"), "none")
    aux = head == "aux"
    logits, weight = ("aux.logits", AUX_WEIGHT) if aux else ("logits", 1.0)
    nodes = [
        conv_node(first, source, f"{head}.0", f"{head}.1"),
        Node(f"{head}.dropout", ChannelDropout(DROPOUT), (f"{head}.0",)),
        conv_node(last, f"{head}.dropout", f"{head}.4"),
        Node(logits, Zoom(REDUCTION), (f"{head}.4",), weight),
    ]
    return [replace(node, training_only=aux) for node in nodes]


def named_pspnet(
    name: str,
    *,
    num_classes: int = CITYSCAPES_CLASSES,
    in_channels: int = 3,
    size: int = 713,
    block: str = "repvgg",
) -> Graph:
    """``PSPNet-RepVGG-B1g2`` or ``PSPNet-RepVGG-B1g2-fast``, as `SEGMENTERS` writes it."""
    chain = architecture(
        name.removeprefix(PREFIX).removesuffix(FAST), in_channels=in_channels, block=block
    )
    return pspnet(chain, fast=name.endswith(FAST), num_classes=num_classes)


SCENES_MODEL = "scenes"


def scenes_network(num_classes: int, *, block: str = "repvgg") -> Graph:
    """A small PSPNet for generated scenes, as the network of the bundled digits is small."""
    chain = plain_architecture(
        depths=(1, 2, 4, 1), channels=(16, 24, 48, 64, 128), kind=block, num_classes=num_classes
    )
    return pspnet(chain, num_classes=num_classes, head=64, aux_head=32)


SEGMENTERS: Mapping[str, Callable[..., Graph]] = {
    name: partial(named_pspnet, name)
    for backbone in NAMES
    for name in (PREFIX + backbone, PREFIX + backbone + FAST)
}
"""Name -> what makes the network of ``num_classes``, ``in_channels`` and kind of ``block``."""
