"""Small PSPNets, random ones, for tests of every room."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Graph
from repvgg_ref.models.network import Model
from repvgg_ref.models.pspnet import pspnet
from tests.random_networks import random_model

DEPTHS, CHANNELS = (1, 2, 6, 1), (4, 5, 6, 8, 12)
CLASSES, HEAD, AUX = 5, 9, 7


def small_graph(*, fast: bool = False, classes: int = CLASSES) -> Graph:
    chain = plain_architecture(depths=DEPTHS, channels=CHANNELS, num_classes=3)
    return pspnet(chain, fast=fast, num_classes=classes, head=HEAD, aux_head=AUX)


def small_model(*, fast: bool = False, dtype: Any = np.float64, seed: int = 0) -> Model:
    """All batch norms have seen something."""
    return random_model(small_graph(fast=fast), seed, dtype)


def pictures(
    seed: int = 0, *, height: int = 33, width: int = 41, dtype: Any = np.float64
) -> tuple[Array, Array]:
    """Two images and their labels, some of them ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (2, height, width))
    labels[rng.random(labels.shape) < 0.15] = 255
    return rng.normal(size=(2, 3, height, width)).astype(dtype), labels
