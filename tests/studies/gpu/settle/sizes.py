"""How large everything is: on a device, and in rehearsal."""

from __future__ import annotations

from typing import Any, NamedTuple

from repvgg_ref.models.architectures import NAMES, architecture
from repvgg_ref.models.graph import Network
from tests.models.small import SMALL


class Sizes(NamedTuple):
    """`judged` and `raced` are names for `network`; arithmetic of the oracle's extra runs."""

    rehearsal: bool
    judged: tuple[str, ...]
    judged_pixels: int
    judged_mixed: tuple[str, ...]
    raced: tuple[tuple[str, int], ...]  # network and batch, inference
    trained: tuple[tuple[str, int], ...]
    pixels: int
    rounds: int
    turn_s: float
    training_s: float
    training_images: int


REAL = Sizes(
    rehearsal=False,
    judged=NAMES,
    judged_pixels=64,
    judged_mixed=("RepVGG-A0", "RepVGG-B1g4"),
    raced=(("RepVGG-A0", 256), ("RepVGG-A0", 1), ("RepVGG-B1", 256), ("RepVGG-B1g4", 256)),
    trained=(("RepVGG-A0", 256), ("RepVGG-B1", 128)),
    pixels=224,
    rounds=7,
    turn_s=0.25,
    training_s=60.0,
    training_images=4096,
)

REHEARSAL = Sizes(
    rehearsal=True,
    judged=("plain", "plus"),
    judged_pixels=36,
    judged_mixed=("plain",),
    raced=(("plain", 2), ("plain", 40)),
    trained=(("plain", 2),),
    pixels=36,
    rounds=2,
    turn_s=0.0,
    training_s=0.3,
    training_images=16,
)


def network(name: str) -> Network:
    """An official architecture, or a small one of the tests."""
    found: Any = SMALL.get(name)
    return found if found is not None else architecture(name)
