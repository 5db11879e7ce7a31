"""What the catalogue says of a kind of block, and how an entry comes to stand in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from repvgg_ref.blocks.run import Linear
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError, did_you_mean


@dataclass(frozen=True)
class Kind:
    """A kind of block.

    Attributes
    ----------
    says : str
        The expression, for people.
    build : callable
        `BlockSpec` -> expression. Leaves called ``....bn`` are batch norms.
    keys : mapping
        Start of a part's name -> start of its key in the published code.
    fused : str
        The key of the fused convolution.
    auto : bool
        Whether a file that lacks some arrays may be a damaged one of this kind: not where its keys
        are some of another's. Such a kind is told only if it has just the file's.
    top1 : float or None
        ImageNet accuracy of RepVGG-B0 with it, percent (Tables 6 and 7, 120 epochs).
    certain : bool
        Whether `top1` was checked in the paper, and is not from memory.
    gate : mapping
        As `keys`, of squeeze-and-excitation, where its published code has other names for it.
    """

    name: str
    says: str
    build: Callable[[BlockSpec], Linear]
    keys: Mapping[str, str]
    fused: str
    auto: bool
    top1: float | None = None
    certain: bool = False
    gate: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[str, Kind] = {}

RESIDUAL_REORG = "residual-reorg"
"""What may be asked for as a block and is none: other wiring (`models.residual_reorg`)."""


def block(
    name: str,
    says: str,
    keys: Mapping[str, str],
    *,
    fused: str = "rbr_reparam",
    auto: bool = True,
    gate: Mapping[str, str] | None = None,
    top1: float | None = None,
    certain: bool = False,
) -> Callable[[Callable[[BlockSpec], Linear]], Callable[[BlockSpec], Linear]]:
    """Enter the decorated function under `name`."""

    def enter(build: Callable[[BlockSpec], Linear]) -> Callable[[BlockSpec], Linear]:
        KINDS[name] = Kind(name, says, build, keys, fused, auto, top1, certain, gate or {})
        return build

    return enter


def kind(name: str) -> Kind:
    """The kind of block called `name`."""
    if name not in KINDS:
        raise CheckpointError(
            "there is no block of that name",
            got=repr(name),
            wanted=", ".join(KINDS),
            advice=did_you_mean(name, KINDS),
        )
    return KINDS[name]


def block_names() -> list[str]:
    """What a RepVGG may be asked to be built of."""
    return [*(name for name, each in KINDS.items() if each.keys), RESIDUAL_REORG]


def require_block(name: str) -> None:
    """Raise `CheckpointError` unless `name` is one of `block_names`."""
    known = block_names()
    if name not in known:
        raise CheckpointError(
            "a RepVGG has no block of that name",
            got=repr(name),
            wanted=", ".join(known),
            advice=did_you_mean(name, known),
        )


def block_kind(name: str) -> Kind:
    """The kind called `name` whose blocks a chain may have.

    Raises
    ------
    CheckpointError
        If there is none, or if it is no block of a chain.
    """
    require_block(name)
    if name == RESIDUAL_REORG:
        raise CheckpointError(
            "its shortcuts span two layers, so it is no block of a chain",
            got=repr(name),
            wanted="a kind of block",
            advice="build, network and residual_reorg make a graph of it",
        )
    return KINDS[name]
