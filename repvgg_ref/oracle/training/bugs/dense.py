"""What ports of a network that says a class for every pixel get wrong while they train.

Labels that do not count, dropout of channels, resizing both ways, dilations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import IGNORED, Zoom
from repvgg_ref.models.geometry import with_geometry
from repvgg_ref.ops.separable import SeparableCache, separable_forward
from repvgg_ref.oracle.bugs import dilations
from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.bugs.resizing import CUBIC, NEAREST, UNALIGNED, Matrix
from repvgg_ref.oracle.training.bugs.wrong_setup import (
    TrainingSite,
    TrainingVariants,
    averaged_over,
    with_loss,
    with_nodes,
    with_ops,
)
from repvgg_ref.oracle.training.run import KeptChannels, Setup

# ------------------------------------------------------------------------ labels


@bug(
    "ignored-pixels",
    says="pixels whose label is to be ignored are not: {detail}",
    advice="ignore_index=255: neither in the sum nor in the count",
    scope="network",
)
def _ignored_pixels(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if not setup.recipe.pixels or not (setup.labels == IGNORED).any():
        return
    share = averaged_over(setup) / setup.labels.size
    counted = with_loss(setup, lambda loss: loss * share, lambda grad: grad * share)
    yield Variant(counted, detail="they count in the mean's denominator")
    for label in (0, setup.network.num_classes - 1):
        learned = np.where(setup.labels == IGNORED, label, setup.labels)
        yield Variant(replace(setup, labels=learned), detail=f"they are taken for class {label}")


@bug(
    "class-ignored",
    says="a class is ignored, too: {detail}",
    advice="only the label 255 counts nowhere, and 0 is a class",
    scope="network",
)
def _class_ignored(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if not setup.recipe.pixels:
        return
    labels = np.where(setup.labels == 0, IGNORED, setup.labels)
    yield Variant(replace(setup, labels=labels), detail="class 0")
    counted = np.where(labels == IGNORED, IGNORED, labels - 1)
    yield Variant(replace(setup, labels=counted), detail="class 0, and the others are one less")


@bug(
    "labels-resized",
    says="the loss is taken where the head's own pixels are: {detail}",
    advice="resize the logits to the labels, not the labels to the logits",
    scope="network",
)
def _labels_resized(site: TrainingSite) -> TrainingVariants:
    """Resized with aligned corners, every so many pixels have the head's own logits."""
    setup = site.program
    factors = {node.op.factor for node in setup.network.nodes if isinstance(node.op, Zoom)}
    for factor in factors if len(factors) == 1 else ():
        for detail, places in (("the labels there", _aligned), ("the labels' nearest", _floored)):
            rows, columns = (places(pixels, factor) for pixels in setup.labels.shape[1:])
            labels = np.full_like(setup.labels, IGNORED)
            labels[:, ::factor, ::factor] = setup.labels[:, rows][:, :, columns]
            yield Variant(replace(setup, labels=labels), detail=detail)


def _aligned(pixels: int, factor: int) -> Array:
    return np.arange(0, pixels, factor)


def _floored(pixels: int, factor: int) -> Array:
    count = len(range(0, pixels, factor))
    return np.arange(count) * pixels // count


@bug(
    "loss-mean-of-means",
    says="the loss is the mean of the images' own means",
    advice="one mean over all pixels that count: images with fewer of them weigh less",
    scope="network",
)
def _loss_mean_of_means(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if not setup.recipe.pixels:
        return
    forward = setup.ops.pixel_cross_entropy_forward
    backward = setup.ops.pixel_cross_entropy_backward

    def each(logits: Array, labels: Array, **how: Any) -> tuple[Any, Any]:
        found = [forward(logits[i : i + 1], labels[i : i + 1], **how) for i in range(len(logits))]
        return sum(loss for loss, _ in found) / len(found), [kept for _, kept in found]

    def back(kept: Any) -> Array:
        return np.concatenate([backward(one) for one in kept]) / len(kept)

    changes = {"pixel_cross_entropy_forward": each, "pixel_cross_entropy_backward": back}
    yield Variant(with_ops(setup, **changes))


# ----------------------------------------------------------------------- dropout


@bug(
    "dropout-wrong",
    says="dropout is wrong: {detail}",
    advice="whole channels times 0 or 1 / (1 - rate), in both heads: those of kept/NAME stay",
    scope="network",
)
def _dropout_wrong(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    places = [node.name for node in setup.network.nodes if isinstance(node.op, KeptChannels)]
    all_of_it = frozenset(places)
    every: dict[str, Callable[[KeptChannels], KeptChannels]] = {
        "it is left out": lambda op: replace(op, rate=0.0, kept=np.ones_like(op.kept)),
        "what it keeps is not divided by 1 - rate": lambda op: replace(op, rate=0.0),
        "it drops what is to be kept": lambda op: replace(op, kept=~op.kept),
        "it divides by the rate": lambda op: replace(op, rate=1 - op.rate),
        "it keeps the same channels of all images": lambda op: replace(
            op, kept=np.repeat(op.kept[:1], len(op.kept), axis=0)
        ),
    }
    for detail, change in every.items() if places else ():
        yield Variant(_dropping(setup, change, all_of_it), detail=detail)
        for place in places if len(places) > 1 else ():
            one = _dropping(setup, change, frozenset({place}))
            yield Variant(one, detail=f"{detail} in {place.partition('.')[0]}")


def _dropping(
    setup: Setup, change: Callable[[KeptChannels], KeptChannels], places: frozenset[str]
) -> Setup:
    return with_nodes(
        setup,
        lambda node: (
            replace(node, op=change(node.op))
            if isinstance(node.op, KeptChannels) and node.name in places
            else node
        ),
    )


# ---------------------------------------------------------------------- resizing


def _resized_by(setup: Setup, matrix: Matrix, places: frozenset[str] | None) -> Setup:
    """The setup that resizes by another matrix, and by its transpose on the way back."""

    def forward(x: Array, *, size: tuple[int, int]) -> tuple[Array, SeparableCache]:
        pairs = zip(size, x.shape[2:], strict=True)
        cache = SeparableCache(*(matrix(*pair).astype(x.dtype) for pair in pairs))
        return separable_forward(x, cache), cache

    return replace(with_ops(setup, bilinear_resize_forward=forward), at=places)


def _places(setup: Setup) -> dict[str, frozenset[str] | None]:
    """Where a network resizes: everywhere, in its pyramid, at all its ends, at one."""
    ends = {node.name for node in setup.network.nodes if node.loss_weight}
    floors = {node.name for node in setup.network.nodes if node.name.endswith(".resize")}
    found: dict[str, frozenset[str] | None] = {"everywhere": None}
    found |= {"in the pyramid": frozenset(floors), "of all logits": frozenset(ends)}
    return found | {f"of {name}": frozenset({name}) for name in sorted(ends)}


def _resized(setup: Setup, matrices: Mapping[str, Matrix]) -> TrainingVariants:
    """Each matrix in each of the places."""
    for where, places in _places(setup).items() if setup.recipe.pixels else ():
        for way, matrix in matrices.items():
            yield Variant(_resized_by(setup, matrix, places), detail=f"{way}, {where}")


@bug(
    "corners-not-aligned",
    says="it resizes without aligning the corners ({detail})",
    advice="align_corners=True, forward and backward",
    scope="network",
)
def _corners_not_aligned(site: TrainingSite) -> TrainingVariants:
    yield from _resized(site.program, UNALIGNED)


@bug(
    "nearest-pixel",
    says="it takes the nearest pixel where it resizes ({detail})",
    advice="bilinear interpolation belongs there, with aligned corners",
    scope="network",
)
def _nearest_pixel(site: TrainingSite) -> TrainingVariants:
    yield from _resized(site.program, NEAREST)


@bug(
    "resize-cubic",
    says="it interpolates with cubics where it resizes ({detail})",
    advice="bilinear interpolation belongs there, with aligned corners",
    scope="network",
)
def _resize_cubic(site: TrainingSite) -> TrainingVariants:
    yield from _resized(site.program, CUBIC)


@bug(
    "resize-gradient",
    says="the gradient of {detail}",
    advice="the way back is the transposed map: every pixel gets what it gave, by its weight",
    scope="network",
)
def _resize_gradient(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if not setup.recipe.pixels:
        return
    undivided = partial(_undivided, setup.ops.adaptive_avg_pool_backward)
    pooled = with_ops(setup, adaptive_avg_pool_backward=undivided)
    yield Variant(pooled, detail="the pyramid's pool is not divided by the windows' pixels")
    transposed, forward = setup.ops.bilinear_resize_backward, setup.ops.bilinear_resize_forward
    ways: dict[str, Callable[[Array, SeparableCache], Array]] = {
        "resizing is the gradient resized back": lambda grad, cache: np.asarray(
            forward(grad, size=_size_of(cache))[0]
        ),
        "resizing does not align the corners": lambda grad, cache: transposed(
            grad, _exchanged(cache, UNALIGNED["half-pixel"])
        ),
        "resizing goes to the nearest pixel": lambda grad, cache: transposed(
            grad, _exchanged(cache, NEAREST["asymmetric, floor"])
        ),
    }
    for where in ("everywhere", "in the pyramid", "of all logits"):
        for detail, way in ways.items():
            wrong = replace(with_ops(setup, bilinear_resize_backward=way), at=_places(setup)[where])
            yield Variant(wrong, detail=f"{detail}, {where}")


def _size_of(cache: SeparableCache) -> tuple[int, int]:
    """Of what was resized."""
    return cache.rows.shape[1], cache.columns.shape[1]


def _exchanged(cache: SeparableCache, matrix: Matrix) -> SeparableCache:
    """Another map between the same sizes."""
    return SeparableCache(*(matrix(*each.shape).astype(each.dtype) for each in cache))


def _undivided(backward: Callable[..., Array], grad_y: Array, cache: SeparableCache) -> Array:
    """Every pixel of a window gets its whole gradient."""
    whole = SeparableCache(*(np.where(matrix > 0, 1, 0).astype(matrix.dtype) for matrix in cache))
    return backward(grad_y, whole)


# --------------------------------------------------------------------- dilations


_STEPS = "stage 3 has dilation 2, stage 4 dilation 4; the fast form only in the last 5 layers"


@bug(dilations.IGNORED, says="{detail}", advice=_STEPS, scope="network")
def _dilation_ignored(site: TrainingSite) -> TrainingVariants:
    yield from _dilated(site.program, dilations.IGNORED)


@bug(dilations.OTHER, says="{detail}", advice=_STEPS, scope="network")
def _dilation_other(site: TrainingSite) -> TrainingVariants:
    yield from _dilated(site.program, dilations.OTHER)


def _dilated(setup: Setup, bug_name: str) -> TrainingVariants:
    for name, says, geometry in dilations.mixed_up(setup.network) if setup.recipe.pixels else ():
        if name == bug_name:
            network = with_geometry(setup.network, geometry)
            yield Variant(replace(setup, network=network), detail=says)
