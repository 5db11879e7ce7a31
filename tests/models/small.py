"""Small networks that between them have every kind of block, with weights that hide nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture, AuxHeadSpec, plain_architecture
from repvgg_ref.models.baselines import Layer, residual_block
from repvgg_ref.models.graph import INPUT, Graph, Network, Node
from repvgg_ref.models.layers import Block, Flatten, GlobalAvgPool, Linear, MaxPool
from repvgg_ref.models.network import Model, build


def _plus() -> Architecture:
    """RepVGGplus in small: SE after the ReLU, stage 3 in two halves, three auxiliary heads."""
    body = plain_architecture(
        depths=[1, 2, 3, 1],
        channels=[4, 8, 8, 12, 16],
        se="after_relu",
        num_classes=5,
        in_channels=2,
    )
    ends = {"stage1_aux": "stage1.0", "stage2_aux": "stage2.1", "stage3_first_aux": "stage3.0"}
    heads = (AuxHeadSpec(name, end, body.block(end).out_channels) for name, end in ends.items())
    return replace(body, aux_heads=tuple(heads))


def _dilated() -> Architecture:
    """The segmentation backbone's last stage: stride 1 and dilation 2."""
    body = plain_architecture(depths=[2, 2], channels=[4, 6, 6], num_classes=3, in_channels=2)
    blocks = [
        replace(block, stride=1, dilation=2) if block.name.startswith("stage2.") else block
        for block in body.blocks
    ]
    return replace(body, blocks=tuple(blocks))


SMALL = {
    "plain": plain_architecture(depths=[2, 2], channels=[4, 6, 8], num_classes=3, in_channels=3),
    "grouped": plain_architecture(
        depths=[2, 3], channels=[4, 8, 12], groups=2, num_classes=4, in_channels=1
    ),
    "se-before-relu": plain_architecture(
        depths=[2, 1], channels=[16, 16, 32], se="before_relu", num_classes=3, in_channels=2
    ),
    "plus": _plus(),
    "dilated": _dilated(),
}


def _residual() -> Graph:
    """ResNet in small: a block whose shortcut is its input, and a bottleneck with another shape."""
    stem = BlockSpec("conv1", 2, 4, 2, kind="conv-bn", kernel=7)
    pool = Node("maxpool", MaxPool(3, 2, 1), ("conv1",))
    basic = residual_block("layer1.0", "maxpool", 4, [Layer(3, 4), Layer(3, 4)])
    layers = [Layer(1, 3, 2), Layer(3, 3), Layer(1, 6)]
    neck = residual_block("layer2.0", "layer1.0.add", 4, layers)
    head = [
        Node("pool", GlobalAvgPool(), ("layer2.0.add",)),
        Node("linear", Linear(6, 3), ("pool",), loss_weight=1.0),
    ]
    return Graph("residual", (Node("conv1", Block(stem), (INPUT,)), pool, *basic, *neck, *head))


def _vgg() -> Graph:
    """VGG in small, for the images of `batch`: biases, no batch norm, two linear layers."""
    specs = [BlockSpec(f"conv{n}_1", n, n + 1, 1, kind="conv-bias") for n in (2, 3)]
    nodes, last = [], INPUT
    for number, spec in enumerate(specs, start=1):
        nodes += [
            Node(spec.name, Block(spec), (last,)),
            Node(f"pool{number}", MaxPool(2, 2), (spec.name,)),
        ]
        last = f"pool{number}"
    head = [
        Node("flatten", Flatten(), (last,)),
        Node("fc0", Linear(4 * 9 * 8, 5, relu=True), ("flatten",)),
        Node("fc1", Linear(5, 3), ("fc0",), loss_weight=1.0),
    ]
    return Graph("vgg", (*nodes, *head))


GRAPHS = {"residual": _residual(), "vgg": _vgg()}


def distinct_model(arch: Network, *, seed: int = 0, dtype: Any = np.float64) -> Model:
    """A model whose batch norms are far from their start: mean 0 and variance 1 hide mistakes."""
    model = build(arch, seed=seed, dtype=dtype)
    rng = np.random.default_rng(seed + 1)
    for name, array in model.params.items():
        shape = array.shape
        if name.endswith((".gamma", ".running_var")):
            model.params[name] = rng.uniform(0.5, 2.0, shape).astype(dtype)
        elif name.endswith((".beta", ".running_mean")):
            model.params[name] = rng.normal(0.0, 0.5, shape).astype(dtype)
    return model


def batch(
    arch: Network, *, count: int = 4, seed: int = 0, dtype: Any = np.float64
) -> tuple[Array, Array]:
    """Images higher than wide, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, arch.in_channels, 36, 34)).astype(dtype)
    return x, rng.integers(0, arch.num_classes, count)
