"""Preprocessing done differently: seen in the first layer, and in no other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import BlockSite, BlockVariants, Variant, bug

# ImageNet's, RGB (FACTS: mean .485 .456 .406, std .229 .224 .225).
MEAN = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


def _at_stem(site: BlockSite, **changes: Callable[[Array], Array]) -> BlockVariants:
    if site.is_stem and site.x.shape[1] == 3:
        for detail, change in changes.items():
            yield Variant(site.program.with_input(change), detail=detail.replace("_", " "))


@bug(
    "input-bgr",
    says="the image's channels are read as BGR",
    advice="OpenCV reads BGR: convert to RGB",
    scope="layer",
)
def input_bgr(site: BlockSite) -> BlockVariants:
    yield from _at_stem(site, bgr=lambda x: x[:, ::-1])


@bug(
    "input-not-normalised",
    says="the image is not normalised ({detail})",
    advice="subtract the mean (.485 .456 .406), divide by the deviation (.229 .224 .225)",
    scope="layer",
)
def input_not_normalised(site: BlockSite) -> BlockVariants:
    yield from _at_stem(
        site,
        neither_mean_nor_deviation=lambda x: x * STD + MEAN,
        the_mean_is_not_subtracted=lambda x: x + MEAN / STD,
        not_divided_by_the_deviation=lambda x: x * STD,
        normalised_twice=lambda x: (x - MEAN) / STD,
        to_minus_one_to_one=lambda x: (x * STD + MEAN) * 2 - 1,
        mean_and_deviation_in_BGR_order=lambda x: (x * STD + MEAN - MEAN[:, ::-1]) / STD[:, ::-1],
    )


@bug(
    "input-not-divided-by-255",
    says="pixel values are 0 to 255 instead of 0 to 1 ({detail})",
    advice="divide by 255 before subtracting the mean",
    scope="layer",
)
def input_not_divided_by_255(site: BlockSite) -> BlockVariants:
    yield from _at_stem(
        site,
        then_normalised=lambda x: ((x * STD + MEAN) * 255 - MEAN) / STD,
        and_not_normalised=lambda x: (x * STD + MEAN) * 255,
        divided_twice=lambda x: ((x * STD + MEAN) / 255 - MEAN) / STD,
    )


@bug(
    "input-mirrored",
    says="the image is mirrored ({detail})",
    advice="no flip at evaluation",
    scope="layer",
)
def input_mirrored(site: BlockSite) -> BlockVariants:
    if site.is_stem:
        yield Variant(site.program.with_input(lambda x: x[..., ::-1]), detail="left to right")
        yield Variant(site.program.with_input(lambda x: x[:, :, ::-1]), detail="top to bottom")


@bug(
    "input-crop-ratio",
    says="the image is cropped and resized differently (about {parameter:.3f} of the reference)",
    advice="resize the short side to 256, crop the centre 224 (ratio 0.875)",
    scope="layer",
)
def input_crop_ratio(site: BlockSite) -> BlockVariants:
    for ratio in (0.875, 1 / 0.875) if site.is_stem else ():
        for filter_name in ("BILINEAR", "BICUBIC"):
            yield Variant(
                site.program.with_input(partial(_zoomed, ratio=ratio, filter_name=filter_name)),
                ratio,
                filter_name.lower(),
            )


@bug(
    "input-resize-filter",
    says="the image was resized with another filter (like {detail})",
    advice="bilinear or bicubic, with antialiasing, as in training",
    scope="layer",
)
def input_resize_filter(site: BlockSite) -> BlockVariants:
    """A blur, or nearest-neighbour steps, is what another filter leaves in the image."""
    if site.is_stem:
        for filter_name in ("NEAREST", "BILINEAR", "BOX"):
            yield Variant(
                site.program.with_input(partial(_down_and_up, filter_name=filter_name)),
                detail=filter_name.lower(),
            )


def _down_and_up(x: Array, filter_name: str) -> Array:
    h, w = x.shape[2:]
    smaller = _resized(x, (h + 1) // 2, (w + 1) // 2, filter_name)
    return _resized(smaller, h, w, filter_name)


def _zoomed(x: Array, ratio: float, filter_name: str) -> Array:
    """The centre `ratio` of the image at full size; above 1 the border is repeated."""
    h, w = x.shape[2:]
    rows, columns = round(h * ratio), round(w * ratio)
    if ratio <= 1:
        top, left = (h - rows) // 2, (w - columns) // 2
        part = x[:, :, top : top + rows, left : left + columns]
    else:
        top, left = (rows - h) // 2, (columns - w) // 2
        border = ((0, 0), (0, 0), (top, rows - h - top), (left, columns - w - left))
        part = np.pad(x, border, mode="edge")
    return _resized(part, h, w, filter_name)


def _resized(x: Array, height: int, width: int, filter_name: str) -> Array:
    from PIL import Image

    filter_ = Image.Resampling[filter_name]
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), filter_))
        for plane in x.reshape(-1, *x.shape[2:])
    ]
    return np.stack(planes).reshape(*x.shape[:2], height, width).astype(np.float64)
