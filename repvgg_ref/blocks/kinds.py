"""What the catalogue says of a kind of block, and how an entry comes to stand in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
        Whether a file is taken for it unasked: not where its keys are some of another's.
    top1 : float or None
        ImageNet accuracy of RepVGG-B0 with it, percent (Tables 6 and 7, 120 epochs).
    certain : bool
        Whether `top1` was checked in the paper, and is not from memory.
    """

    name: str
    says: str
    build: Callable[[BlockSpec], Linear]
    keys: Mapping[str, str]
    fused: str
    auto: bool
    top1: float | None = None
    certain: bool = False


KINDS: dict[str, Kind] = {}


def block(
    name: str,
    says: str,
    keys: Mapping[str, str],
    *,
    fused: str = "rbr_reparam",
    auto: bool = True,
    top1: float | None = None,
    certain: bool = False,
) -> Callable[[Callable[[BlockSpec], Linear]], Callable[[BlockSpec], Linear]]:
    """Enter the decorated function under `name`."""

    def enter(build: Callable[[BlockSpec], Linear]) -> Callable[[BlockSpec], Linear]:
        KINDS[name] = Kind(name, says, build, keys, fused, auto, top1, certain)
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


def block_kind(name: str) -> Kind:
    """The kind called `name` whose blocks a RepVGG may have.

    Raises
    ------
    CheckpointError
        If there is none, or if its blocks are parts of other networks only.
    """
    chosen = [known for known, each in KINDS.items() if each.keys]
    if name not in chosen:
        raise CheckpointError(
            "a RepVGG has no block of that name",
            got=repr(name),
            wanted=", ".join(chosen),
            advice=did_you_mean(name, chosen),
        )
    return KINDS[name]
