"""Weights that anyone can make from a key and a shape alone: what a witness computes with."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array

SIDE, SHOWN = 64, 8  # pixels of the image, logits that are recorded


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Key -> array in float64; batch norms are far from their start."""
    return {key: _array(key, shape) for key, shape in shapes.items()}


def image() -> Array:
    """(1, 3, SIDE, SIDE), higher than wide."""
    return np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE - 8))


def digest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A checksum of all keys and shapes, whatever their order."""
    return zlib.crc32("\n".join(sorted(f"{k} {tuple(s)}" for k, s in shapes.items())).encode())


def _array(key: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if not shape:
        return np.zeros((), np.int64)
    if len(shape) > 1:  # variance 2 / fan-in
        return (rng.random(shape) - 0.5) * math.sqrt(24 / math.prod(shape[1:]))
    if key.endswith(("bias", "running_mean")):
        return 0.2 * rng.random(shape) - 0.1
    return 0.5 + 0.5 * rng.random(shape)
