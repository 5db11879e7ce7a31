"""Bugs between blocks: max pools, and sums of a residual block and its shortcut, then a ReLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.layers import AddRelu, MaxPool
from repvgg_ref.oracle.bugs.base import Site, Variant, bug
from repvgg_ref.oracle.programs.node import Change, NodeProgram

NodeSite = Site[NodeProgram]
NodeVariants = Iterator[Variant[NodeProgram]]


def _instead(site: NodeSite, change: Change, detail: str = "") -> NodeVariants:
    """`change` of the branch and the shortcut, in this order."""
    if isinstance(site.program.node.op, AddRelu):
        yield Variant(replace(site.program, change=change), detail=detail)


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
    says="a ReLU is taken before the sum, of {detail}",
    advice="of a residual block's last convolution no ReLU is taken before the sum",
)
def relu_before_sum(site: NodeSite) -> NodeVariants:
    ways: dict[str, Change] = {
        "the branch, and none after it": lambda xs: _relu(xs[0]) + xs[1],
        "the branch, and another after it": lambda xs: _relu(_relu(xs[0]) + xs[1]),
    }
    if (site.program.xs[-1] < 0).any():  # else a ReLU changes nothing in the shortcut
        ways |= {
            "the shortcut, and another after it": lambda xs: _relu(xs[0] + _relu(xs[1])),
            "both, each by itself": lambda xs: _relu(xs[0]) + _relu(xs[1]),
        }
    for detail, change in ways.items():
        yield from _instead(site, change, detail)


@bug(
    "shortcut-weighted",
    says="in the sum at a shortcut {detail}",
    advice="both terms count once, and are added",
)
def shortcut_weighted(site: NodeSite) -> NodeVariants:
    ways: dict[str, Change] = {
        "the shortcut counts twice": lambda xs: xs[0] + 2 * xs[1],
        "the branch counts twice": lambda xs: 2 * xs[0] + xs[1],
        "the shortcut is subtracted": lambda xs: xs[0] - xs[1],
        "the branch is subtracted": lambda xs: xs[1] - xs[0],
        "the mean is taken": lambda xs: (xs[0] + xs[1]) / 2,
        "the branch is added to itself": lambda xs: 2 * xs[0],
        "the shortcut is added to itself": lambda xs: 2 * xs[1],
        "the two are multiplied": lambda xs: xs[0] * xs[1],
    }
    for detail, change in ways.items():
        yield from _instead(site, partial(_rectified, change), detail)


def _rectified(change: Change, xs: list[Array]) -> Array:
    return _relu(change(xs))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _pooled(site: NodeSite, change: Callable[[Array], Array], detail: str) -> NodeVariants:
    if isinstance(site.program.node.op, MaxPool):
        yield Variant(replace(site.program, change=lambda xs: change(xs[0])), detail=detail)


@bug(
    "pool-average",
    says="the pool takes means ({detail})",
    advice="the largest of each window belongs there",
)
def pool_average(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, MaxPool):
        yield from _pooled(site, partial(_mean_of, op), "of whole windows")
        if op.padding:
            share = _mean_of(op, np.ones((1, 1, *site.x.shape[2:])))
            yield from _pooled(
                site, lambda x: _mean_of(op, x) / share, "of the pixels in each window"
            )


@bug(
    "pool-placed",
    says="the pool's windows are other ones: {detail}",
    advice="set the pool's kernel, stride and padding as the network has them",
)
def pool_placed(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if not isinstance(op, MaxPool):
        return
    k, p = op.kernel, op.padding
    ways = {
        "the border lies below and to the right alone": (k, 0, 2 * p),
        "the border lies above and to the left alone": (k, 2 * p, 0),
        "there is no border": (k, 0, 0),
        "there is no border, but for what the last windows lack": (k, 0, op.stride - 1),
        f"{k - 1} x {k - 1} pixels without a border": (k - 1, 0, 0),
        f"{k + 1} x {k + 1} pixels": (k + 1, p, p),
        "one pixel, so that every other one is left out": (1, 0, 0),
    }
    right = (k, p, p)
    for detail, way in ways.items():
        if way != right:
            yield from _pooled(site, partial(_largest, op.stride, *way), detail)


def _mean_of(op: MaxPool, x: Array) -> Array:
    return np.asarray(_windows(x, op.stride, op.kernel, op.padding, op.padding, 0.0).mean((4, 5)))


def _largest(stride: int, kernel: int, before: int, after: int, x: Array) -> Array:
    return np.asarray(_windows(x, stride, kernel, before, after, -np.inf).max(axis=(4, 5)))


def _windows(x: Array, stride: int, kernel: int, before: int, after: int, fill: float) -> Array:
    """(N, C, Ho, Wo, kernel, kernel)."""
    sides = ((0, 0), (0, 0), (before, after), (before, after))
    padded = np.pad(x, sides, constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return seen[:, :, ::stride, ::stride]
