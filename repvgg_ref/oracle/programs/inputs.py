"""Inputs that let bugs show: dense, signed, asymmetric, different in every channel and corner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.arguments import fixed_side
from repvgg_ref.models.dense import IGNORED, ChannelDropout
from repvgg_ref.models.graph import Network, extents

# Height and width differ, and still do after five halvings (2 x 3): a squeeze-and-excitation that
# pools over a square, or exchanged axes, change nothing on a square image.
GOLDEN_EXTENT = (64, 72)
# Of a network that says a class for every pixel: 8 k + 1, and an eighth of it and 1, 13 x 11, is
# divided by none of the pyramid's bins.
DENSE_EXTENT = (97, 81)
# Of its training steps: as many pixels in more images, since the pyramid's batch norms see one
# mean an image, and two of them give no gradient but rounding; 11 x 7 has no such divisor either.
DENSE_TRAINING = (4, 81, 49)
_IGNORED_SHARES = (0.05, 0.35)  # of the first image and of the last: means of means differ


def distinguishing_inputs(
    arch: Network, *, batch: int = 2, height: int = 96, width: int = 80, seed: int = 0
) -> Array:
    """A batch on which known bugs change the output, float32 (N, in_channels, H, W).

    Smooth waves of a different frequency and phase in every channel carry structure as images do,
    noise reaches every tap, and a gradient to one corner breaks every symmetry (flips, swaps of
    height and width, borders). The scale is that of a normalised image.
    """
    rng = np.random.default_rng(seed)
    shape = (batch, arch.in_channels)
    rows = np.linspace(0, 1, height)[:, None]
    columns = np.linspace(0, 1, width)[None, :]
    frequency = rng.uniform(1, 6, (2, *shape, 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (*shape, 1, 1))
    waves = np.sin(2 * np.pi * (frequency[0] * rows + frequency[1] * columns) + phase)
    noise = rng.normal(size=(*shape, height, width))
    corner = 0.5 * rows + 0.9 * columns**2
    offset = rng.normal(size=(*shape, 1, 1)) * 0.3
    return np.asarray(0.8 * waves + 0.6 * noise + corner + offset, np.float32)


def golden_inputs(arch: Network, *, batch: int = 2, seed: int = 0) -> Array:
    """The batch of a golden bundle: `distinguishing_inputs` of its extent.

    A network that takes images of one size alone gets that.
    """
    side = fixed_side(arch)
    usual = DENSE_EXTENT if arch.is_dense else GOLDEN_EXTENT
    height, width = usual if side is None else (side, side)
    return distinguishing_inputs(arch, batch=batch, height=height, width=width, seed=seed)


def training_inputs(arch: Network, *, seed: int = 0) -> Array:
    """The batch of a golden bundle's training steps."""
    if not arch.is_dense:
        return golden_inputs(arch, seed=seed)
    batch, height, width = DENSE_TRAINING
    return distinguishing_inputs(arch, batch=batch, height=height, width=width, seed=seed)


def images_of_size(arch: Network, declared: Sequence[int | None] | None) -> Array:
    """A golden bundle's batch, of the size (N, C, H, W) that a port declares, where it does."""
    usual = golden_inputs(arch)
    if declared is None or len(declared) != 4 or not any(declared[axis] for axis in (0, 2, 3)):
        return usual
    batch, _, height, width = (n or k for n, k in zip(declared, usual.shape, strict=True))
    return distinguishing_inputs(arch, batch=batch, height=height, width=width)


def distinguishing_labels(arch: Network, batch: int, *, seed: int = 0) -> Array:
    """A class for each image, int64 (N,), no class twice if there are enough of them."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(arch.num_classes, batch, replace=batch > arch.num_classes)
    return np.asarray(chosen, np.int64)


def training_labels(arch: Network, x: Array, *, seed: int = 0) -> Array:
    """`distinguishing_labels` for the images `x`; of a dense network int64 (N, H, W).

    Of every image another share of pixels is ignored.
    """
    if not arch.is_dense:
        return distinguishing_labels(arch, len(x), seed=seed)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, arch.num_classes, (len(x), *x.shape[2:]))
    shares = np.linspace(*_IGNORED_SHARES, len(x))[:, None, None]
    labels[rng.random(labels.shape) < shares] = IGNORED
    return np.asarray(labels, np.int64)


def dropout_masks(arch: Network, x: Array, *, seed: int = 0) -> dict[str, Array]:
    """Which channels every dropout keeps of the images `x`: node -> bool (N, C).

    As many are dropped of each image as the rate says: one at least, and never all.
    """
    rng = np.random.default_rng(seed)
    rates = {n.name: n.op.rate for n in arch.nodes if isinstance(n.op, ChannelDropout)}
    known = extents(arch, *x.shape[2:]) if rates else {}
    found: dict[str, Array] = {}
    for name, rate in rates.items():
        channels = known[name][0]
        dropped = min(max(1, round(rate * channels)), channels - 1)
        order = rng.permuted(np.tile(np.arange(channels), (len(x), 1)), axis=1)
        found[name] = np.asarray(order >= dropped)
    return found
