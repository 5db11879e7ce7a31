"""Any file with re-parameterisable blocks: each is fused in its place, the rest stays."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from repvgg_ref.blocks.catalogue import one_conv
from repvgg_ref.blocks.family import FAMILY, Member
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.parts import Parts
from repvgg_ref.blocks.run import Linear
from repvgg_ref.errors import CheckpointError, NotFusibleError, did_you_mean
from repvgg_ref.models.arguments import checked_eps
from weights_io import sanitize

AUTO = "auto"
Shape = tuple[int, ...]
_COUNTER = "num_batches_tracked"
_STORED = {"gamma": "weight", "beta": "bias"}  # of a batch norm
# Keys of files whose batch norms have the other of two eps: they are set after building.
_YOLO = re.compile(r"(^|\.)(ERBlock_\d|Rep_[pn]\d|reduce_layer\d|detect)\.")
_OFFICIAL = re.compile(r"(^|\.)stage\d+\.")


@dataclass(frozen=True)
class FoundBlock:
    """A block in a file.

    Attributes
    ----------
    prefix : str
        What its keys begin with, up to a dot; "" at the root.
    names : dict
        Leaf of `linear` -> key in the file.
    owned : tuple of str
        All keys that go once it is fused, in the order of the file.
    is_fused : bool
        Its fused convolution is there already, beside its branches, which are only left out.
    """

    prefix: str
    member: Member
    linear: Linear
    conv: Conv
    names: Mapping[str, str]
    owned: tuple[str, ...]
    eps: float
    is_fused: bool = False

    @property
    def fused(self) -> str:
        """The fused key, without its last part."""
        return f"{self.prefix}{self.member.fused}".rstrip(".")


@dataclass
class Blocks:
    """All blocks of a file, what nearly was one, and what was assumed of them."""

    found: list[FoundBlock] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def family(self) -> str:
        """The kind of most blocks."""
        counts = Counter(block.member.name for block in self.found)
        return counts.most_common(1)[0][0] if counts else ""


def find_blocks(
    shapes: Mapping[str, Shape], *, family: str = AUTO, eps: float | None = None
) -> Blocks:
    """Every block of the family among arrays of these shapes, in the file's order.

    Parameters
    ----------
    family : str
        "auto", or the only kind to look for.
    eps : float, optional
        Of all batch norms; default what the kind's users have.

    Raises
    ------
    CheckpointError
        If there is no such kind.
    """
    members = _members(family)
    ordered, place = sorted(shapes), {name: i for i, name in enumerate(shapes)}
    taken: dict[str, FoundBlock] = {}
    blocks = Blocks()
    for one in members:
        inner = f".{one.anchor}"
        for key in [key for key in shapes if key.endswith(inner) or key == one.anchor]:
            prefix = key[: -len(one.anchor)]
            if prefix in taken:
                continue
            found = _block(one, prefix, shapes, (ordered, place), blocks)
            if found is not None:
                taken[prefix] = found
    blocks.found = sorted(taken.values(), key=lambda block: place[block.owned[0]])
    blocks.found = _with_eps(blocks, shapes, eps)
    return blocks


def _members(family: str) -> list[Member]:
    if family == AUTO:
        return list(FAMILY.values())
    if family not in FAMILY:
        raise CheckpointError(
            "there is no such kind of block",
            got=repr(family),
            wanted=", ".join((AUTO, *FAMILY)),
            advice=did_you_mean(family, FAMILY),
        )
    return [FAMILY[family]]


def _block(
    one: Member,
    prefix: str,
    shapes: Mapping[str, Shape],
    order: tuple[list[str], Mapping[str, int]],
    blocks: Blocks,
) -> FoundBlock | None:
    """The block of this kind behind `prefix`, if all of it is there.

    `order` has the keys sorted, and their places in the file.
    """
    ordered, place = order
    ends = {key[len(prefix) :]: shapes[key] for key in _behind(prefix, ordered)}
    mine = {end: shape for end, shape in ends.items() if one.owns(end)}
    where = sanitize(prefix.rstrip(".")) or "the file's root"
    try:
        linear = one.build(Parts(mine))
        if linear is None:
            blocks.near.append(f"{where}: its shapes are not those of {one.name}")
            return None
        conv = one_conv(linear, where)
    except (NotFusibleError, CheckpointError) as error:
        blocks.near.append(f"{where}: {error}")
        return None
    names = {leaf: _key(leaf) for leaf in linear.shapes()}
    lacks = [
        end
        for leaf, end in names.items()
        if mine.get(end) != linear.shapes()[leaf] and not end.endswith(_COUNTER)
    ]
    if lacks:
        blocks.near.append(f"{where}: {one.name} without {sanitize(', '.join(lacks[:4]))}")
        return None
    if spare := [end for end in mine if end not in names.values() and _COUNTER not in end]:
        blocks.near.append(f"{where}: {one.name} with {sanitize(', '.join(spare[:4]))} besides")
        return None
    owned = tuple(sorted((prefix + end for end in mine), key=place.__getitem__))
    deployed = f"{one.fused}.bias".lstrip(".")
    return FoundBlock(
        prefix,
        one,
        linear,
        conv,
        {leaf: prefix + end for leaf, end in names.items() if not end.endswith(_COUNTER)},
        owned,
        one.eps[0],
        deployed in ends and deployed not in mine,
    )


def _behind(prefix: str, ordered: list[str]) -> Iterator[str]:
    """The keys that start with `prefix`."""
    for at in range(bisect_left(ordered, prefix), len(ordered)):
        if not ordered[at].startswith(prefix):
            return
        yield ordered[at]


def _key(leaf: str) -> str:
    """How a file calls an array of an expression."""
    start, dot, end = leaf.rpartition(".")
    return f"{start}{dot}{_STORED.get(end, end)}"


def _with_eps(blocks: Blocks, shapes: Mapping[str, Shape], eps: float | None) -> list[FoundBlock]:
    """The blocks with the eps that is asked for, else with what their users have."""
    if eps is not None:
        return [replace(block, eps=checked_eps(eps)) for block in blocks.found]
    found: list[FoundBlock] = []
    said: set[str] = set()
    for block in blocks.found:
        one = block.member
        if one.note and one.name not in said:
            blocks.notes.append(f"{one.name}: {one.note}")
        said.add(one.name)
        found.append(replace(block, eps=_eps_of(one, shapes, blocks.notes)))
    return found


def _eps_of(one: Member, shapes: Mapping[str, Shape], notes: list[str]) -> float:
    if len(one.eps) == 1:
        return one.eps[0]
    if any(map(_YOLO.search, shapes)):
        return max(one.eps)
    if not any(map(_OFFICIAL.search, shapes)):
        line = (
            f"{one.name}: eps {min(one.eps):g} is assumed, which no key tells; "
            f"--eps {max(one.eps):g} is the YOLO line's"
        )
        if line not in notes:
            notes.append(line)
    return min(one.eps)
