"""Mixup: pictures and targets, each a blend of two (Zhang et al., arXiv 1710.09412, equation 1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, array_module


class Blend(NamedTuple):
    """Image n becomes ``weight * image n + (1 - weight) * image partners[n]``."""

    weight: float
    partners: Array


def draw_blend(count: int, *, alpha: float, seed: tuple[int, ...]) -> Blend:
    """One weight from Beta(alpha, alpha) for the batch, and a random partner for each image."""
    rng = np.random.default_rng(seed)
    return Blend(float(rng.beta(alpha, alpha)), rng.permutation(count))


def mixed(values: Array, blend: Blend) -> Array:
    """`values` (N, ...) blended along the first axis; dtype kept."""
    partners = array_module(values).asarray(blend.partners)
    together: Array = blend.weight * values + (1 - blend.weight) * values[partners]
    return together


def one_hot(labels: Array, classes: int, dtype: Any) -> Array:
    """(N,) -> (N, classes)."""
    hot: Array = (labels[:, None] == array_module(labels).arange(classes)).astype(dtype)
    return hot
