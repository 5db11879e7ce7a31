"""Inputs that let bugs show: dense, signed, asymmetric, different in every channel and corner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.arguments import fixed_side
from repvgg_ref.models.graph import Network

# Height and width differ, and still do after five halvings (2 x 3): a squeeze-and-excitation that
# pools over a square, or exchanged axes, change nothing on a square image.
GOLDEN_EXTENT = (64, 72)
# Of a network that says a class for every pixel: 8 k + 1, and an eighth of it and 1, 13 x 11, is
# divided by none of the pyramid's bins.
DENSE_EXTENT = (97, 81)


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
