"""Every network that has a name: RepVGG's own, and those of other papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache

from repvgg_ref.blocks.catalogue import RESIDUAL_REORG
from repvgg_ref.errors import CheckpointError, ReportedError, did_you_mean
from repvgg_ref.models.architectures import (
    NAMES,
    Architecture,
    architecture,
    official_name,
    spelling,
)
from repvgg_ref.models.arguments import NO_HEAD, require_counts
from repvgg_ref.models.baselines import BASELINES
from repvgg_ref.models.efficientnet import EFFICIENTNETS
from repvgg_ref.models.graph import Network
from repvgg_ref.models.mobileone import MOBILEONE
from repvgg_ref.models.regnet import REGNETS
from repvgg_ref.models.repvit import REPVITS
from repvgg_ref.models.residual_reorg import residual_reorg

MAKERS: Mapping[str, Callable[..., Network]] = {
    **BASELINES,
    **REGNETS,
    **EFFICIENTNETS,
    **MOBILEONE,
    **REPVITS,
}
"""Networks beside RepVGG by name: what makes one of num_classes, in_channels and size."""

ALIASES: Mapping[str, str] = {
    "resnext50_32x4d": "ResNeXt-50",
    "resnext101_32x4d": "ResNeXt-101",
    "regnet_x_3_2gf": "RegNetX-3.2GF",
    "regnetx_032": "RegNetX-3.2GF",
    "regnetx_120": "RegNetX-12GF",
}
"""What torchvision or timm call a network, where more than dashes and case is different."""


@cache
def usual(name: str) -> Network:
    """The network of that name in `MAKERS`, as it is published."""
    return MAKERS[name]()


def chains() -> list[Architecture]:
    """The networks beside RepVGG that are stages of blocks, named as RepVGG's are."""
    return [made for name in MAKERS if isinstance(made := usual(name), Architecture)]


def graphs() -> list[str]:
    """The names of the networks beside RepVGG that are no chain of stages."""
    return [name for name in MAKERS if not isinstance(usual(name), Architecture)]


def find_name(name: str) -> str | None:
    """How the network that `name` is a spelling of is written here; None if there is none."""
    others = {spelling(each): each for each in MAKERS}
    others |= {spelling(alias): each for alias, each in ALIASES.items()}
    return others.get(spelling(name)) or official_name(name)


def list_models(pattern: str = "*") -> list[str]:
    """The names that `build` knows and `pattern` fits, as they are written here.

    >>> list_models("repvgg_b1*")
    ['RepVGG-B1', 'RepVGG-B1g2', 'RepVGG-B1g4']

    Case and dashes do not matter, so timm's spellings find them too.
    """
    if not isinstance(pattern, str):
        raise ReportedError(
            "there is no such pattern of names",
            got=type(pattern).__name__,
            wanted='a text such as "repvgg_b1*"',
        )
    wanted = "".join(spelling(part) + "*" for part in pattern.split("*"))[:-1]
    return [name for name in (*NAMES, *MAKERS) if fnmatchcase(spelling(name), wanted)]


def network(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    size: int = 224,
    block: str = "repvgg",
) -> Network:
    """The network called `name`: as `list_models` writes it, or as timm does (``repvgg_a0``).

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
    ShapeError
        If there is no class, channel or pixel.
    """
    require_counts(num_classes=num_classes, advice=NO_HEAD)
    require_counts(in_channels=in_channels, size=size)
    if (make := MAKERS.get(find_name(name) or "")) is not None:
        if block != "repvgg":
            raise CheckpointError(f"{name} is not built of blocks to choose", got=f"block {block}")
        return make(num_classes=num_classes, in_channels=in_channels, size=size)
    if official_name(name) is not None:
        reorganised = block == RESIDUAL_REORG
        chain = architecture(
            name,
            num_classes=num_classes,
            in_channels=in_channels,
            block="plain" if reorganised else block,
        )
        return residual_reorg(chain) if reorganised else chain
    raise CheckpointError(
        "there is no network of that name",
        got=repr(name),
        wanted=", ".join((*NAMES, *MAKERS)),
        advice=did_you_mean(name, (*NAMES, *MAKERS)),
    )
