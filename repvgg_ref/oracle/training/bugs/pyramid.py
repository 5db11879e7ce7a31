"""What ports get wrong in the pyramid while they train: the windows of its pools, its parts' order.

The same wrong ways as in evaluation (`oracle.bugs.pyramid`), with their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import AdaptiveAvgPool, Concat
from repvgg_ref.models.graph import Node, extents
from repvgg_ref.ops.separable import SeparableCache, separable_forward
from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.bugs.pyramid import OTHER_WINDOWS, Windows, adaptive_windows, means, orders
from repvgg_ref.oracle.training.bugs.wrong_setup import (
    TrainingSite,
    TrainingVariants,
    with_nodes,
    with_ops,
)
from repvgg_ref.oracle.training.run import Setup

_OTHER_BINS = (1, 2, 3, 4, 6, 8)


@bug(
    "pool-windows",
    says="the pyramid's pool has other windows ({detail})",
    advice="bin i of b covers rows floor(i H / b) up to but without ceil((i + 1) H / b)",
    scope="network",
)
def _pool_windows(site: TrainingSite) -> TrainingVariants:
    """Where the pixels are multiples of the bins, say, some windows are the right ones."""
    setup = site.program
    known = extents(setup.network, *setup.x.shape[2:]) if setup.recipe.pixels else {}
    pools = [
        (pixels, node.op.bins)
        for node in setup.network.nodes
        if isinstance(node.op, AdaptiveAvgPool) and node.inputs[0] in known
        for sizes in [known[node.inputs[0]][1:]]
        for pixels in sizes
        if min(sizes) >= node.op.bins
    ]
    for detail, windows in OTHER_WINDOWS.items():
        if any(windows(*pool) != adaptive_windows(*pool) for pool in pools):
            yield Variant(_with_windows(setup, windows), detail=detail)


def _with_windows(setup: Setup, windows: Windows) -> Setup:
    """Other windows of every pool whose bins are no more than pixels."""
    right = setup.ops.adaptive_avg_pool_forward

    def forward(x: Array, *, size: tuple[int, int]) -> tuple[Array, SeparableCache]:
        if any(bins > pixels for bins, pixels in zip(size, x.shape[2:], strict=True)):
            return right(x, size=size)
        pairs = zip(size, x.shape[2:], strict=True)
        cache = SeparableCache(*(means(windows, *pair).astype(x.dtype) for pair in pairs))
        return separable_forward(x, cache), cache

    return with_ops(setup, adaptive_avg_pool_forward=forward)


@bug(
    "pool-bins",
    says="a floor of the pyramid has {parameter:.0f} bins a side ({detail})",
    advice="the bins are 1, 2, 3 and 6",
    scope="network",
)
def _pool_bins(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    pools = {n.name: n.op for n in setup.network.nodes if isinstance(n.op, AdaptiveAvgPool)}
    for name, op in pools.items():
        for bins in _OTHER_BINS:
            if bins != op.bins:
                other = replace(op, bins=bins)
                wrong = with_nodes(setup, partial(_with_op, {name: other}))
                yield Variant(wrong, float(bins), f"{op.bins} in its place")
    upside_down = dict(zip(pools, reversed(pools.values()), strict=True))
    if len(pools) > 1:
        wrong = with_nodes(setup, partial(_with_op, upside_down))
        last = next(iter(upside_down.values()))
        yield Variant(wrong, float(last.bins), "the first, and so on in reverse")


def _with_op(others: Mapping[str, AdaptiveAvgPool], node: Node) -> Node:
    return replace(node, op=others.get(node.name, node.op))


def _with_inputs(name: str, inputs: tuple[str, ...], node: Node) -> Node:
    return replace(node, inputs=inputs) if node.name == name else node


@bug(
    "concat-order",
    says="the parts of a concatenation are in another order ({detail})",
    advice="the feature map comes first, then bins 1, 2, 3, 6",
    scope="network",
)
def _concat_order(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    for node in setup.network.nodes:
        if isinstance(node.op, Concat):
            for order in orders(len(node.inputs)):
                inputs = tuple(node.inputs[i] for i in order)
                wrong = with_nodes(setup, partial(_with_inputs, node.name, inputs))
                yield Variant(wrong, detail=", ".join(map(str, order)))
