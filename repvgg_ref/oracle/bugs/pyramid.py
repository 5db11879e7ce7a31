"""Bugs between the blocks of a network that says a class for every pixel: its pyramid and its ends.

Sources of the right ways: `ops.adaptive_avg_pool`, `ops.bilinear_resize`; of the wrong ones what
exporters, runtimes and other implementations of PSPNet do (Caffe's fixed windows, ONNX's modes of
Resize, torch's ``align_corners=False``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat, ResizeAs, Zoom
from repvgg_ref.oracle.bugs.base import Site, Variant, bug
from repvgg_ref.oracle.programs.node import NodeProgram

NodeSite = Site[NodeProgram]
NodeVariants = Iterator[Variant[NodeProgram]]
Places = Callable[[int, int], Array]

_OTHER_BINS = 8  # a pyramid of up to so many


def _changed(
    site: NodeSite, change: Callable[..., Array], detail: str = "", parameter: float | None = None
) -> Variant[NodeProgram]:
    return Variant(replace(site.program, change=change), parameter, detail)


# --- resizing -----------------------------------------------------------------------------------


def _middles(outputs: int, pixels: int) -> Array:
    """Between the middles of pixels: torch's ``align_corners=False``, ONNX's half_pixel."""
    return np.maximum((np.arange(outputs) + 0.5) * pixels / outputs - 0.5, 0)


def _from_corner(outputs: int, pixels: int) -> Array:
    """From the first pixel's corner: ONNX's asymmetric."""
    return np.arange(outputs) * pixels / outputs


def _aligned(outputs: int, pixels: int) -> Array:
    """Corners on corners, which is right."""
    return np.arange(outputs) * (pixels - 1) / max(outputs - 1, 1)


def linear(places: Places, outputs: int, pixels: int) -> Array:
    """The matrix (outputs, pixels) that interpolates at these places."""
    place = places(outputs, pixels)
    first = np.floor(place).astype(int)
    matrix = np.zeros((outputs, pixels))
    np.add.at(matrix, (np.arange(outputs), first), 1 - (place - first))
    np.add.at(matrix, (np.arange(outputs), (first + 1).clip(0, pixels - 1)), place - first)
    return matrix


def _nearest(places: Places, rounded: Callable[[Array], Array], outputs: int, pixels: int) -> Array:
    """The matrix (outputs, pixels) that takes one pixel."""
    at = rounded(places(outputs, pixels)).astype(int).clip(0, pixels - 1)
    return np.asarray(np.eye(pixels)[at])


def _halves_down(place: Array) -> Array:
    """To the next pixel, ONNX's round_prefer_floor."""
    return np.ceil(place - 0.5)


def _resized(
    matrix: Callable[[int, int], Array], size: tuple[int, int], xs: Sequence[Array]
) -> Array:
    x = xs[0]
    rows, columns = (matrix(n, k) for n, k in zip(size, x.shape[2:], strict=True))
    return np.asarray(rows @ x @ columns.T)


def _resizings(site: NodeSite, ways: Mapping[str, Callable[[int, int], Array]]) -> NodeVariants:
    """By other matrices, where it resizes; a single pixel is the same resized in every way."""
    if isinstance(site.program.node.op, ResizeAs | Zoom) and max(site.x.shape[2:]) > 1:
        size = site.program.extent[1:]
        for detail, matrix in ways.items():
            yield _changed(site, partial(_resized, matrix, size), detail)


@bug(
    "corners-not-aligned",
    says="it resizes without aligning the corners ({detail})",
    advice="align_corners=True, or coordinate_transformation_mode=align_corners",
)
def corners_not_aligned(site: NodeSite) -> NodeVariants:
    ways = {"half-pixel": partial(linear, _middles), "asymmetric": partial(linear, _from_corner)}
    yield from _resizings(site, ways)


@bug(
    "nearest-pixel",
    says="it takes the nearest pixel ({detail})",
    advice="bilinear interpolation belongs there",
)
def nearest_pixel(site: NodeSite) -> NodeVariants:
    ways = {
        "asymmetric, floor": partial(_nearest, _from_corner, np.floor),
        "half-pixel": partial(_nearest, _middles, _halves_down),
        "corners aligned": partial(_nearest, _aligned, _halves_down),
    }
    yield from _resizings(site, ways)


@bug(
    "resize-cubic",
    says="it interpolates with cubics ({detail})",
    advice="bilinear interpolation belongs there",
)
def resize_cubic(site: NodeSite) -> NodeVariants:
    ways = {"corners aligned": partial(_cubic, _aligned), "half-pixel": partial(_cubic, _unclipped)}
    yield from _resizings(site, ways)


def _unclipped(outputs: int, pixels: int) -> Array:
    return (np.arange(outputs) + 0.5) * pixels / outputs - 0.5


def _cubic(places: Places, outputs: int, pixels: int) -> Array:
    """The matrix of cubic convolution (Keys 1981) with a = -3/4, torch's and ONNX's."""
    place, a, matrix = places(outputs, pixels), -0.75, np.zeros((outputs, pixels))
    first = np.floor(place).astype(int)
    for tap in (-1, 0, 1, 2):
        t = np.abs(place - (first + tap))
        near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        at = np.arange(outputs), (first + tap).clip(0, pixels - 1)
        np.add.at(matrix, at, np.where(t <= 1, near, far))
    return matrix


@bug(
    "resize-missing",
    says="the logits are not resized to the image",
    advice="bilinear with aligned corners, to 8 times height and width less 1, plus 1",
    scope="layer",
)
def resize_missing(site: NodeSite) -> NodeVariants:
    if isinstance(site.program.node.op, Zoom):
        yield _changed(site, _first)


@bug(
    "resize-size",
    says="they are resized to {parameter:.0f} times their size ({detail})",
    advice="images are 8 k + 1 pixels wide: the logits are resized to their very size",
    scope="layer",
)
def resize_size(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, Zoom):
        height, width = site.x.shape[2:]
        size = height * op.factor, width * op.factor
        for detail, places in (("half-pixel", _middles), ("corners aligned", _aligned)):
            change = partial(_resized, partial(linear, places), size)
            yield _changed(site, change, detail, float(op.factor))


@bug(
    "output-height-width-swapped",
    says="height and width of the output are exchanged ({detail})",
    advice="resize takes (height, width); arrays are (N, C, H, W)",
    scope="layer",
)
def output_transposed(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if not isinstance(op, Zoom | ResizeAs):
        return
    height, width = site.program.extent[1:]
    if isinstance(op, Zoom) or height == width:
        yield _changed(site, lambda xs: site.program.y.swapaxes(2, 3), "transposed")
        if height != width:
            change = partial(_resized, partial(linear, _aligned), (width, height))
            yield _changed(site, change, "resized to width times height")


def _first(xs: Sequence[Array]) -> Array:
    return xs[0]


# --- pooling ------------------------------------------------------------------------------------


def _windows(
    bins: int, bounds: Callable[[int, int], list[tuple[int, int]]], xs: Sequence[Array]
) -> Array:
    """Means over a grid of windows."""
    x = xs[0]
    rows, columns = (_means(bounds(n, bins), n) for n in x.shape[2:])
    return np.asarray(rows @ x @ columns.T)


def _means(windows: Sequence[tuple[int, int]], pixels: int) -> Array:
    matrix = np.zeros((len(windows), pixels))
    for i, (start, end) in enumerate(windows):
        matrix[i, start:end] = 1 / max(end - start, 1)
    return matrix


def _adaptive(pixels: int, bins: int) -> list[tuple[int, int]]:
    return [(i * pixels // bins, -(-(i + 1) * pixels // bins)) for i in range(bins)]


def _floored(pixels: int, bins: int) -> list[tuple[int, int]]:
    return [(i * pixels // bins, (i + 1) * pixels // bins) for i in range(bins)]


def _fixed(pixels: int, bins: int) -> list[tuple[int, int]]:
    step = pixels // bins
    return [(i * step, (i + 1) * step) for i in range(bins)]


def _overlapping(pixels: int, bins: int) -> list[tuple[int, int]]:
    step = pixels // bins
    return [(i * step, i * step + pixels - (bins - 1) * step) for i in range(bins)]


@bug(
    "pool-windows",
    says="the pyramid's pool has other windows ({detail})",
    advice="bin i of b covers rows floor(i H / b) up to but without ceil((i + 1) H / b)",
)
def pool_windows(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if not isinstance(op, AdaptiveAvgPool) or min(site.x.shape[2:]) < op.bins:
        return
    right = [_adaptive(n, op.bins) for n in site.x.shape[2:]]
    for detail, windows in (
        ("floor to floor", _floored),
        ("fixed: what is over is cut off", _fixed),
        ("fixed: stride floor(H / b), the last window ends at the border", _overlapping),
    ):
        if [windows(n, op.bins) for n in site.x.shape[2:]] != right:
            yield _changed(site, partial(_windows, op.bins, windows), detail)


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
                yield _changed(site, partial(_windows, bins, _adaptive), "", float(bins))


@bug("pool-max", says="the pyramid takes maxima", advice="means belong there")
def pool_max(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, AdaptiveAvgPool):
        yield _changed(site, partial(_maxima, op.bins))


def _maxima(bins: int, xs: Sequence[Array]) -> Array:
    x = xs[0]
    for axis in (2, 3):
        found = [x.take(range(*w), axis).max(axis) for w in _adaptive(x.shape[axis], bins)]
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
        for order in _orders(len(site.program.xs)):
            yield _changed(site, partial(_joined, order), ", ".join(map(str, order)))


def _orders(count: int) -> Iterator[tuple[int, ...]]:
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
            yield _changed(site, partial(_zeroed, i), "zeros in its place", float(i))
            yield _changed(site, partial(_joined, others), "so many channels fewer", float(i))


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
                yield _changed(site, partial(_joined, order), f"{k} instead of {i}")


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
            yield _changed(site, partial(_times, factor), "", factor)


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
            yield _changed(site, partial(_times, factor * kept[:, :, None, None]), "", share)


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
        yield _changed(site, lambda xs, give=give: give(), what)
