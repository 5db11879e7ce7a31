"""Every network that has a name: RepVGG's own, and those of other papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from repvgg_ref.errors import CheckpointError, did_you_mean
from repvgg_ref.models.architectures import NAMES, Architecture, architecture, official_name
from repvgg_ref.models.baselines import BASELINES
from repvgg_ref.models.graph import Network
from repvgg_ref.models.mobileone import MOBILEONE

MAKERS: Mapping[str, Callable[..., Network]] = {**BASELINES, **MOBILEONE}
"""Networks beside RepVGG by name: what makes one of num_classes, in_channels and size."""


def chains() -> list[Architecture]:
    """The networks beside RepVGG that are stages of blocks, named as RepVGG's are."""
    return [made for make in MAKERS.values() if isinstance(made := make(), Architecture)]


def graphs() -> list[Callable[..., Network]]:
    """Makers of the networks beside RepVGG that are no chain of stages."""
    return [make for make in MAKERS.values() if not isinstance(make(), Architecture)]


def find_name(name: str) -> str | None:
    """How the network called `name` is written (case does not matter); None if there is none."""
    others = {each.lower(): each for each in MAKERS}
    return others.get(name.lower()) or official_name(name)


def network(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
    block: str = "repvgg",
) -> Network:
    """The network called `name` (case does not matter), official names of RepVGG as there.

    Parameters
    ----------
    size : int
        Side of the images, for networks that take images of one size only.
    block : str
        The kind of a RepVGG's blocks; other networks have their own.

    Raises
    ------
    CheckpointError
        If there is none of that name.
    """
    if (make := MAKERS.get(find_name(name) or "")) is not None:
        if block != "repvgg":
            raise CheckpointError(f"{name} is not built of blocks to choose", got=f"block {block}")
        return make(num_classes=num_classes, in_channels=in_channels, size=size)
    if official_name(name) is not None:
        return architecture(name, num_classes=num_classes, in_channels=in_channels, block=block)
    raise CheckpointError(
        "there is no network of that name",
        got=repr(name),
        wanted=", ".join((*NAMES, *MAKERS)),
        advice=did_you_mean(name, (*NAMES, *MAKERS)),
    )
