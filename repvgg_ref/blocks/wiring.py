"""What can be put together to an expression, asked when it is put together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from repvgg_ref.blocks.form import Pair
from repvgg_ref.errors import NotFusibleError, ShapeError


def require_groups(name: str, groups: int, *channels: int) -> None:
    """Raise `ShapeError` unless `groups` divides the numbers of channels."""
    if groups < 1 or any(count % groups for count in channels):
        raise ShapeError(
            f"{name}: channels must fall into groups of one size",
            got=f"{groups} groups of " + " and ".join(map(str, channels)) + " channels",
            wanted="a divisor of both",
        )


def require_terms(terms: Sequence[Any], alike: Sequence[str]) -> None:
    """Raise unless `terms` are linear expressions that are `alike` in these attributes."""
    if not terms or not all(hasattr(term, "form") for term in terms):
        raise ShapeError(
            "what is summed or concatenated must be expressions that can stand alone",
            got=_listed(terms),
            wanted="convolutions, identities, chains that begin with one",
        )
    for what in alike:
        first, *others = (getattr(term, what) for term in terms)
        if any(other != first for other in others):
            raise NotFusibleError(
                f"terms of a sum must have outputs of one size: their {what} differs",
                got=", ".join(map(str, others)),
                wanted=first,
            )


def require_order(parts: Sequence[Any]) -> None:
    """Raise `ShapeError` unless `parts` can follow one another in a chain."""
    stands = [hasattr(part, "form") for part in parts]
    behind_pads = [stands[k + 1 : k + 2] for k, p in enumerate(parts) if hasattr(p, "width")]
    if not any(stands[:1]) or behind_pads.count([True]) < len(behind_pads):
        raise ShapeError(
            "a chain must begin with a convolution or an identity, and have one behind each border",
            got=_listed(parts),
        )
    for before, after in pairwise(
        [part for part, alone in zip(parts, stands, strict=True) if alone]
    ):
        if before.out_channels != after.in_channels:
            raise ShapeError(
                "what follows in a chain must take as many channels as it is given",
                got=f"{type(after).__name__} of {after.in_channels} channels",
                wanted=before.out_channels,
            )


def chain_growth(parts: Sequence[Any]) -> Pair:
    """`Linear.growth` of a chain: what follows a stride grows by as many times as much."""
    grown, stride = [0, 0], [1, 1]
    for part in parts:
        for axis in (0, 1):
            grown[axis] += stride[axis] * getattr(part, "growth", (0, 0))[axis]
            stride[axis] *= getattr(part, "stride", (1, 1))[axis]
    return grown[0], grown[1]


def starts(linear: Any) -> dict[str, float]:
    """What arrays that do not start as kernels or a norm's do hold before training, by name."""
    own = dict(getattr(linear, "starts", {}))
    parts = (starts(part) for part in getattr(linear, "parts", ()))
    return {name: value for found in (own, *parts) for name, value in found.items()}


def _listed(parts: Sequence[Any]) -> str:
    return ", ".join(type(part).__name__ for part in parts) or "nothing"
