"""A kind of block that stands in files of other networks, and how an entry comes to be one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repvgg_ref.blocks.linear import Identity, Sum
from repvgg_ref.blocks.parts import Parts
from repvgg_ref.blocks.run import Linear

Build = Callable[[Parts], "Linear | None"]

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
"""A pattern of the ends of a batch norm's keys."""


@dataclass(frozen=True)
class Member:
    """A kind of block.

    Attributes
    ----------
    name : str
    anchor : str
        The end of a key that every such block has; what stands before it is the block's prefix.
    build : callable
        From the shapes behind the prefix to the expression; None if it is none of this kind.
    fused : str
        The deploy form's convolution, ``PREFIX.fused.weight``; "" for the prefix itself.
    eps : tuple of float
        What its users have; of several the file's other keys must tell. Empty: no batch norm.
    users : str
    keys : str
        A pattern of all ends of keys that belong to the block, or that show that it is none: what
        matches must have a place in the expression.
    note : str
        What is done to it that its published code does not do.
    untold : str
        What keys cannot tell, and what is assumed, unless the file holds the modules themselves.
    told_by : str
        The attribute of the block's module that tells it.
    outer : str
        The batch norm behind the block, which its deploy form keeps and others fold.
    placeholder : str
        A pattern of the block's arrays that it never computes with while it trains.
    beside : str
        A pattern of submodules that are none of its arrays', at which `build` looks if it matters.
    neutral : str
        A pattern of further ones that change nothing, if they are identities.
    summed : str
        A pattern of containers of branches: an identity in one would be a branch, too.
    leaves : pairs of str
        Where a key does not end as an array of `linear` does: a pattern, and what replaces it.
    maybe : callable, optional
        From the expression to what the same keys may mean, too; None if they cannot.
    """

    name: str
    anchor: str
    build: Build
    fused: str
    eps: tuple[float, ...]
    users: str
    keys: str
    note: str = ""
    untold: str = ""
    told_by: str = ""
    outer: str = ""
    placeholder: str = ""
    beside: str = ""
    neutral: str = ""
    summed: str = ""
    leaves: tuple[tuple[str, str], ...] = ()
    maybe: Callable[[Any], Linear | None] | None = None

    @property
    def deployed(self) -> tuple[str, str]:
        """The ends of the keys of its fused convolution, the bias last."""
        start = f"{self.fused}." if self.fused else ""
        return f"{start}weight", f"{start}bias"

    def owns(self, end: str) -> bool:
        """Whether a key with this end, behind the prefix, is the block's.

        The bias of a convolution is, wherever its kernel is: people train their blocks with one.
        """
        name, dot, last = end.rpartition(".")
        return self.names(end) or (last == "bias" and self.names(f"{name}{dot}weight"))

    def names(self, end: str) -> bool:
        """Whether its published code has a key with this end."""
        return re.fullmatch(self.keys, end) is not None

    def leaf(self, end: str) -> str:
        """What the expression calls the array under a key with this end."""
        for pattern, ours in self.leaves:
            end = re.sub(pattern, ours, end)
        return end


FAMILY: dict[str, Member] = {}


def other_identity(linear: Any) -> Linear | None:
    """A sum with the identity, if it has none, or without it; None if that has other channels."""
    rest = [part for part in linear.parts if not isinstance(part, Identity)]
    if len(rest) < len(linear.parts):
        return Sum(*rest)
    same = linear.in_channels == linear.out_channels
    return Sum(*rest, Identity("x", linear.in_channels, linear.groups)) if same else None


def member(name: str, anchor: str, **about: Any) -> Callable[[Build], Build]:
    """Register the decorated function as a kind; those that ask more of a file come first."""

    def register(build: Build) -> Build:
        FAMILY[name] = Member(name, anchor, build, **about)
        return build

    return register
