"""Bugs between the blocks of a network that says a class for every pixel: its pyramid and its ends.

Source of the right way of pooling: `ops.adaptive_avg_pool`; of the wrong ones what exporters,
runtimes and other implementations of PSPNet do (Caffe's fixed windows). How it resizes: `resizing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat
from repvgg_ref.oracle.bugs.base import bug
from repvgg_ref.oracle.bugs.resizing import NodeSite, NodeVariants, changed

_OTHER_BINS = 8  # a pyramid of up to so many
Windows = Callable[[int, int], list[tuple[int, int]]]  # (pixels, bins) -> first and end of each


# --- pooling ------------------------------------------------------------------------------------


def _windows(bins: int, bounds: Windows, xs: Sequence[Array]) -> Array:
    """Means over a grid of windows."""
    x = xs[0]
    rows, columns = (means(bounds, bins, n) for n in x.shape[2:])
    return np.asarray(rows @ x @ columns.T)


def means(bounds: Windows, bins: int, pixels: int) -> Array:
    """The matrix (bins, pixels) that averages over windows."""
    matrix = np.zeros((bins, pixels))
    for i, (start, end) in enumerate(bounds(pixels, bins)):
        matrix[i, start:end] = 1 / max(end - start, 1)
    return matrix


def adaptive_windows(pixels: int, bins: int) -> list[tuple[int, int]]:
    """The right ones."""
    return [(i * pixels // bins, -(-(i + 1) * pixels // bins)) for i in range(bins)]


def _floored(pixels: int, bins: int) -> list[tuple[int, int]]:
    return [(i * pixels // bins, (i + 1) * pixels // bins) for i in range(bins)]


def _fixed(pixels: int, bins: int) -> list[tuple[int, int]]:
    step = pixels // bins
    return [(i * step, (i + 1) * step) for i in range(bins)]


def _overlapping(pixels: int, bins: int) -> list[tuple[int, int]]:
    step = pixels // bins
    return [(i * step, i * step + pixels - (bins - 1) * step) for i in range(bins)]


OTHER_WINDOWS: Mapping[str, Windows] = {
    "floor to floor": _floored,
    "fixed: what is over is cut off": _fixed,
    "fixed: stride floor(H / b), the last window ends at the border": _overlapping,
}


@bug(
    "pool-windows",
    says="the pyramid's pool has other windows ({detail})",
    advice="bin i of b covers rows floor(i H / b) up to but without ceil((i + 1) H / b)",
)
def pool_windows(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if not isinstance(op, AdaptiveAvgPool) or min(site.x.shape[2:]) < op.bins:
        return
    right = [adaptive_windows(n, op.bins) for n in site.x.shape[2:]]
    for detail, windows in OTHER_WINDOWS.items():
        if [windows(n, op.bins) for n in site.x.shape[2:]] != right:
            yield changed(site, partial(_windows, op.bins, windows), detail)


@bug(
    "pool-bins",
    says="this floor of the pyramid has {parameter:.0f} bins a side",
    advice="the bins are 1, 2, 3 and 6",
    scope="layer",
)
def pool_bins(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, AdaptiveAvgPool):
        for bins in range(1, _OTHER_BINS + 1):
            if bins != op.bins:
                yield changed(site, partial(_windows, bins, adaptive_windows), "", float(bins))


@bug("pool-max", says="the pyramid takes maxima", advice="means belong there")
def pool_max(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, AdaptiveAvgPool):
        yield changed(site, partial(_maxima, op.bins))


def _maxima(bins: int, xs: Sequence[Array]) -> Array:
    x = xs[0]
    for axis in (2, 3):
        found = [x.take(range(*w), axis).max(axis) for w in adaptive_windows(x.shape[axis], bins)]
        x = np.stack(found, axis)
    return x


# --- concatenation ------------------------------------------------------------------------------


@bug(
    "concat-order",
    says="its parts are in another order ({detail})",
    advice="the feature map comes first, then bins 1, 2, 3, 6",
    scope="layer",
)
def concat_order(site: NodeSite) -> NodeVariants:
    if isinstance(site.program.node.op, Concat):
        for order in orders(len(site.program.xs)):
            yield changed(site, partial(_joined, order), ", ".join(map(str, order)))


def orders(count: int) -> Iterator[tuple[int, ...]]:
    """The feature map last, the pyramid upside down, all of it, two parts exchanged."""
    straight = tuple(range(count))
    seen = {straight}
    swaps = [
        tuple(j if k == i else i if k == j else k for k in straight)
        for i in straight
        for j in straight[i + 1 :]
    ]
    for order in ((*straight[1:], 0), (0, *straight[:0:-1]), straight[::-1], *swaps):
        if order not in seen:
            seen.add(order)
            yield order


def _joined(order: Sequence[int], xs: Sequence[Array]) -> Array:
    return np.concatenate([xs[i] for i in order], axis=1)


@bug(
    "pyramid-part-missing",
    says="part {parameter:.0f} is not in the concatenation ({detail})",
    advice="0 is the feature map, 1 to 4 are the bins 1, 2, 3, 6",
    scope="layer",
)
def part_missing(site: NodeSite) -> NodeVariants:
    if isinstance(site.program.node.op, Concat):
        for i in range(len(site.program.xs)):
            others = [k for k in range(len(site.program.xs)) if k != i]
            yield changed(site, partial(_zeroed, i), "zeros in its place", float(i))
            yield changed(site, partial(_joined, others), "so many channels fewer", float(i))


def _zeroed(part: int, xs: Sequence[Array]) -> Array:
    return np.concatenate([x * (k != part) for k, x in enumerate(xs)], axis=1)


@bug(
    "pyramid-part-twice",
    says="a part of the concatenation stands in the place of another ({detail})",
    advice="each floor of the pyramid has a convolution and a place of its own",
    scope="layer",
)
def part_twice(site: NodeSite) -> NodeVariants:
    if not isinstance(site.program.node.op, Concat):
        return
    count = len(site.program.xs)
    for i in range(1, count):
        for k in range(1, count):
            if i != k:
                order = [k if place == i else place for place in range(count)]
                yield changed(site, partial(_joined, order), f"{k} instead of {i}")


# --- the ends -----------------------------------------------------------------------------------


@bug(
    "dropout-scaled",
    says="dropout multiplies by {parameter:.6g} in evaluation",
    advice="in evaluation dropout does nothing; in training it divides what it keeps by 1 - rate",
    scope="layer",
)
def dropout_scaled(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, ChannelDropout):
        for factor in (1 - op.rate, 1 / (1 - op.rate)):
            yield changed(site, partial(_times, factor), "", factor)


def _times(factor: float | Array, xs: Sequence[Array]) -> Array:
    return np.asarray(xs[0] * factor)


@bug(
    "dropout-left-on",
    says="dropout is on: {parameter:.1%} of the channels are 0",
    advice="switch the network to evaluation: model.eval()",
    scope="layer",
)
def dropout_left_on(site: NodeSite) -> NodeVariants:
    """Which channels were dropped is read off the candidate's output."""
    op, y_hat = site.program.node.op, site.y_hat
    if not isinstance(op, ChannelDropout) or y_hat is None or y_hat.shape != site.x.shape:
        return
    kept = factors(site.x, y_hat) > 0.5
    dead = ~site.x.any(axis=(2, 3))
    dropped = ~kept & ~dead
    if dropped.any():
        for factor in (1 / (1 - op.rate), 1.0):
            share = float(dropped.sum() / max((~dead).sum(), 1))
            yield changed(site, partial(_times, factor * kept[:, :, None, None]), "", share)


def factors(x: Array, y: Array) -> Array:
    """By what each channel of `x` (N, C, H, W) was multiplied to give `y`: (N, C)."""
    energy = (x * x).sum(axis=(2, 3))
    found = (x * np.nan_to_num(y)).sum(axis=(2, 3))
    return np.asarray(np.divide(found, energy, out=np.zeros_like(found), where=energy > 0))


@bug(
    "another-output",
    says="this is {detail}",
    advice="the main head's logits come last; auxiliary heads are for training only",
    scope="layer",
)
def another_output(site: NodeSite) -> NodeVariants:
    for what, give in site.program.instead.items():
        yield changed(site, lambda xs, give=give: give(), what)
