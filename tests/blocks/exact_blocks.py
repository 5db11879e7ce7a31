"""Blocks in exact rationals: every ``var + eps`` is a rational's square, so nothing is rounded.

`branch_sum` and `fused_output` are the two sides of the paper's claim, before the ReLU, which would
hide every difference between negative numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import train_block_forward
from repvgg_ref.blocks.catalogue import expression, fused_conv, part_of
from repvgg_ref.blocks.fusion import FusedConv, fuse_exactly
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.ops import REFERENCE
from tests.ops.exact import frozen, rationals

EPS: Any = Fraction(1, 100)
WITHOUT_RELU = replace(REFERENCE, relu_forward=lambda x: (x, None))


# What is there besides the 3x3 branch: 1x1, identity.
KIND = {
    (True, True): "repvgg",
    (True, False): "1x1-only",
    (False, True): "identity-only",
    (False, False): "plain",
}


@dataclass(frozen=True)
class Case:
    """A block and an input; `width` counts channels per group."""

    stride: int
    groups: int
    dilation: int
    has_1x1: bool
    has_identity: bool
    width: int = 1
    out_width: int = 1
    height: int = 3
    extra: int = 1
    seed: int = 0

    @property
    def spec(self) -> BlockSpec:
        entry = self.groups * self.width
        return BlockSpec(
            name="stage0",
            in_channels=entry,
            out_channels=entry if self.has_identity else self.groups * self.out_width,
            stride=self.stride,
            groups=self.groups,
            dilation=self.dilation,
            kind=KIND[self.has_1x1, self.has_identity],
        )

    @property
    def image(self) -> tuple[int, int, int, int]:
        return 2, self.spec.in_channels, self.height, self.height + self.extra

    def exact(self) -> tuple[dict[str, Array], Array]:
        """The block's arrays and an input, all rationals."""
        rng = np.random.default_rng(self.seed)
        params = {
            name: exact_array(name, shape, rng) for name, shape in block_shapes(self.spec).items()
        }
        return params, rationals(rng, *self.image)


def block_shapes(spec: BlockSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the block's arrays in train form."""
    shapes = param_shapes(Architecture("one block", (spec,), 1), "train")
    return {name: shape for name, shape in shapes.items() if name.startswith(f"{spec.name}.")}


def geometry(spec: BlockSpec) -> dict[str, Any]:
    """How the fused convolution runs."""
    return fused_conv(spec).settings


def branch_sum(spec: BlockSpec, params: Mapping[str, Array], x: Array, eps: Any) -> Array:
    """What the three branches add up to."""
    return train_block_forward(spec, params, x, ops=WITHOUT_RELU, eps=eps, training=False)[0]


def fused_output(spec: BlockSpec, params: Mapping[str, Array], x: Array, eps: Any) -> Array:
    """The one convolution, its kernel summed in the arithmetic of the arrays given."""
    return convolve(spec, fused_exactly(spec, params, eps), x)


def fused_exactly(spec: BlockSpec, params: Mapping[str, Array], eps: Any) -> FusedConv:
    """The block's kernel and bias in the arithmetic of the arrays given."""
    return fuse_exactly(expression(spec), part_of(spec, params), eps)


def convolve(spec: BlockSpec, fused: FusedConv, x: Array) -> Array:
    return REFERENCE.conv2d_forward(x, fused.weight, fused.bias, **geometry(spec))[0]


def exact_array(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if not name.endswith("running_var"):
        return rationals(rng, *shape)
    roots = [
        Fraction(int(p), int(q))
        for p, q in zip(rng.integers(1, 9, shape[0]), rng.integers(1, 9, shape[0]), strict=True)
    ]
    return frozen(np.array([root * root - EPS for root in roots], dtype=object))
