"""Bugs at the end of a residual block: the sum of its branch and its shortcut, then a ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from repvgg_ref.models.layers import AddRelu
from repvgg_ref.oracle.bugs.base import Site, Variant, bug
from repvgg_ref.oracle.programs.node import Change, NodeProgram

NodeSite = Site[NodeProgram]
NodeVariants = Iterator[Variant[NodeProgram]]


def _instead(site: NodeSite, change: Change) -> NodeVariants:
    """`change` of the branch and the shortcut, in this order."""
    if isinstance(site.program.node.op, AddRelu):
        yield Variant(replace(site.program, change=change))


@bug(
    "shortcut-missing",
    says="it adds no shortcut",
    advice="add the block's input, or its projection, before the last ReLU",
)
def shortcut_missing(site: NodeSite) -> NodeVariants:
    yield from _instead(site, lambda xs: np.maximum(xs[0], 0))


@bug(
    "shortcut-alone",
    says="it is the shortcut alone",
    advice="add what the convolutions give to the shortcut",
)
def shortcut_alone(site: NodeSite) -> NodeVariants:
    yield from _instead(site, lambda xs: np.maximum(xs[1], 0))


@bug(
    "relu-missing",
    says="no ReLU follows the sum",
    advice="the sum of a residual block is followed by a ReLU",
)
def relu_missing(site: NodeSite) -> NodeVariants:
    yield from _instead(site, lambda xs: xs[0] + xs[1])


@bug(
    "relu-before-sum",
    says="a ReLU is taken before the sum",
    advice="of a residual block's last convolution no ReLU is taken before the sum",
)
def relu_before_sum(site: NodeSite) -> NodeVariants:
    yield from _instead(site, lambda xs: np.maximum(xs[0], 0) + xs[1])
