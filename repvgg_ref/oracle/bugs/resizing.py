"""Resizing done differently: Resize's other modes, other sizes, more steps than one.

The right way: `ops.bilinear_resize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import ResizeAs, Zoom
from repvgg_ref.models.layers import Extent
from repvgg_ref.oracle.bugs.base import Site, Variant, bug
from repvgg_ref.oracle.programs.node import NodeProgram

NodeSite = Site[NodeProgram]
NodeVariants = Iterator[Variant[NodeProgram]]
Places = Callable[[int, int], Array]
Matrix = Callable[[int, int], Array]  # (outputs, pixels) -> (outputs, pixels)


def changed(
    site: NodeSite, change: Callable[..., Array], detail: str = "", parameter: float | None = None
) -> Variant[NodeProgram]:
    """The node computing something else of its inputs."""
    return Variant(replace(site.program, change=change), parameter, detail)


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


def _halves_up(place: Array) -> Array:
    """To the next pixel as torch's nearest-exact takes it."""
    return np.floor(place + 0.5)


UNALIGNED: Mapping[str, Matrix] = {
    "half-pixel": partial(linear, _middles),
    "asymmetric": partial(linear, _from_corner),
}
NEAREST: Mapping[str, Matrix] = {
    "asymmetric, floor": partial(_nearest, _from_corner, np.floor),
    "half-pixel": partial(_nearest, _middles, _halves_down),
    "half-pixel, halves up": partial(_nearest, _middles, _halves_up),
    "corners aligned": partial(_nearest, _aligned, _halves_down),
}


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
            yield changed(site, partial(_resized, matrix, size), detail)


@bug(
    "corners-not-aligned",
    says="it resizes without aligning the corners ({detail})",
    advice="align_corners=True, or coordinate_transformation_mode=align_corners",
)
def corners_not_aligned(site: NodeSite) -> NodeVariants:
    yield from _resizings(site, UNALIGNED)


@bug(
    "nearest-pixel",
    says="it takes the nearest pixel ({detail})",
    advice="bilinear interpolation belongs there",
)
def nearest_pixel(site: NodeSite) -> NodeVariants:
    yield from _resizings(site, NEAREST)


@bug(
    "resize-cubic",
    says="it interpolates with cubics ({detail})",
    advice="bilinear interpolation belongs there",
)
def resize_cubic(site: NodeSite) -> NodeVariants:
    yield from _resizings(site, CUBIC)


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


CUBIC: Mapping[str, Matrix] = {
    "corners aligned": partial(_cubic, _aligned),
    "half-pixel": partial(_cubic, _unclipped),
}


_HALF_PIXEL = "half-pixel"
_WAYS: Mapping[str, Places] = {_HALF_PIXEL: _middles, "corners aligned": _aligned}


@bug(
    "resize-missing",
    says="the logits are not resized to the image",
    advice="bilinear with aligned corners, to 8 times height and width less 1, plus 1",
    scope="layer",
)
def resize_missing(site: NodeSite) -> NodeVariants:
    if isinstance(site.program.node.op, Zoom):
        yield changed(site, _first)


@bug(
    "resize-size",
    says="they are resized to {parameter:.0f} times their size ({detail})",
    advice="images are 8 k + 1 pixels wide: the logits are resized to their very size",
    scope="layer",
)
def resize_size(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, Zoom):
        ends = _whole(site, op.factor)
        doubled = [_whole(site, factor) for factor in _steps(op)]
        for how, places in _WAYS.items():
            for sizes, steps in (((ends,), ""), ((*doubled, ends), ", in steps of 2")):
                change = partial(_in_steps, places, sizes)
                yield changed(site, change, how + steps, float(op.factor))


@bug(
    "resize-cropped",
    says="it is resized to {parameter:.0f} times its size, and what is over is cut off ({detail})",
    advice="resize to the images' very size",
    scope="layer",
)
def resize_cropped(site: NodeSite) -> NodeVariants:
    op = site.program.node.op
    if isinstance(op, Zoom):
        for how, places in _WAYS.items():
            change = partial(_cropped, places, _whole(site, op.factor), site.program.extent[1:])
            yield changed(site, change, how, float(op.factor))


def _cropped(
    places: Places, size: tuple[int, int], kept: tuple[int, int], xs: Sequence[Array]
) -> Array:
    return _resized(partial(linear, places), size, xs)[:, :, : kept[0], : kept[1]]


@bug(
    "resize-in-steps",
    says="it resizes in steps, by way of {detail}",
    advice="take one step: by way of 2 (h - 1) + 1 aligned pixels alone it is the same",
    scope="layer",
)
def resize_in_steps(site: NodeSite) -> NodeVariants:
    """To the right size in the end; by way of ``f (h - 1) + 1`` aligned pixels nothing changes."""
    op = site.program.node.op
    if not isinstance(op, Zoom):
        return
    ends, factors = site.program.extent[1:], _steps(op)
    for chosen in (*((factor,) for factor in factors), factors):
        whole = [_whole(site, factor) for factor in chosen]
        between = [Zoom(factor).extent([_extent(site)])[1:] for factor in chosen]
        for how, sizes in (*((how, whole) for how in _WAYS), (_HALF_PIXEL, between)):
            detail = f"{' and '.join(f'{h} x {w}' for h, w in sizes)} pixels ({how})"
            yield changed(site, partial(_in_steps, _WAYS[how], (*sizes, ends)), detail)


def _steps(op: Zoom) -> tuple[int, ...]:
    """The powers of 2 below its factor, but 1."""
    return tuple(2**n for n in range(1, op.factor.bit_length() - 1))


def _whole(site: NodeSite, factor: int) -> tuple[int, int]:
    """So many times height and width."""
    _, height, width = _extent(site)
    return factor * height, factor * width


def _extent(site: NodeSite) -> Extent:
    channels, height, width = site.x.shape[1:]
    return channels, height, width


def _in_steps(places: Places, sizes: Sequence[tuple[int, int]], xs: Sequence[Array]) -> Array:
    x = xs[0]
    for size in sizes:
        x = _resized(partial(linear, places), size, [x])
    return x


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
        yield changed(site, lambda xs: site.program.y.swapaxes(2, 3), "transposed")
        if height != width:
            change = partial(_resized, partial(linear, _aligned), (width, height))
            yield changed(site, change, "resized to width times height")


def _first(xs: Sequence[Array]) -> Array:
    return xs[0]
