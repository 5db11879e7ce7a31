"""Small networks and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from tests.random_networks import random_model

State = dict[str, Array]

SMALL = plain_architecture(depths=(2, 3), channels=(4, 4, 6), groups=2, num_classes=5)
SQUEEZED = plain_architecture(
    depths=(2,), channels=(16, 32), se="before_relu", num_classes=3, in_channels=1
)
PLUS = plain_architecture(depths=(1, 1, 4), channels=(4, 4, 8, 8), se="after_relu", num_classes=3)


def small_model(arch: Network = SMALL, seed: int = 0) -> Model:
    """The same weights at every call."""
    return random_model(arch, seed)


def small_state() -> State:
    """The train form of `SMALL` under official names."""
    return small_model().state_dict()


def written(folder: Path, state: Mapping[str, Array], container: Any = "torch-zip") -> Path:
    """A bare file of `state`, whose name tells nothing."""
    path = folder / "file.weights"
    weights_io.save_weights(path, state, container=container)
    return path
