"""Networks that studies of the oracle judge: small ones of every kind, and the official ones."""

from __future__ import annotations

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.models.network import Model
from repvgg_ref.models.registry import network
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from tests.models.small import SMALL

Size = tuple[int, int]
_CHANNELS = [16, 16, 32, 48, 64]

NETWORKS: dict[str, Network] = {
    **SMALL,
    "plain-16": plain_architecture(depths=[2, 2, 3, 1], channels=_CHANNELS, num_classes=10),
    "grouped-16": plain_architecture(
        depths=[2, 2, 3, 1], channels=_CHANNELS, groups=4, num_classes=10
    ),
    "se-16": plain_architecture(
        depths=[2, 2, 3, 1], channels=_CHANNELS, se="before_relu", num_classes=10
    ),
    "se-narrow": plain_architecture(
        depths=[2, 1, 1, 1], channels=[16, 16, 24, 24, 32], se="before_relu", num_classes=10
    ),
    "plus-16": plain_architecture(
        depths=[2, 2, 3, 1], channels=_CHANNELS, se="after_relu", num_classes=10
    ),
    "many-branches": mobileone(
        "M",
        widths=(0.25, 0.25, 0.3, 0.2),
        copies=4,
        gates=(0, 0, 0, 1),
        depths=(1, 2, 2, 1),
        num_classes=10,
    ),
    # B1g4 and D2se with an eighth of their channels.
    "B1g4/8": plain_architecture(
        depths=[4, 6, 16, 1], channels=[8, 16, 32, 64, 256], groups=4, num_classes=10
    ),
    "D2se/8": plain_architecture(
        depths=[8, 14, 24, 1], channels=[16, 20, 40, 80, 320], se="before_relu", num_classes=10
    ),
}


def network_and_inputs(
    name: str, seed: int, size: Size = (96, 80), images: int = 2
) -> tuple[Model, Array]:
    """A network by name, with weights that hide nothing, and a batch for it."""
    arch = NETWORKS[name] if name in NETWORKS else network(name)
    x = distinguishing_inputs(arch, batch=images, height=size[0], width=size[1], seed=seed)
    return distinguishing_model(arch, seed, x=x), x
