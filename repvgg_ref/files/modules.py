"""Any file with re-parameterisable blocks: each is fused in its place, the rest stays."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod

from repvgg_ref.blocks.catalogue import one_conv
from repvgg_ref.blocks.family import FAMILY, Member
from repvgg_ref.blocks.linear import Conv
from repvgg_ref.blocks.parts import Parts, norms_in, with_eps
from repvgg_ref.blocks.run import Linear
from repvgg_ref.errors import CheckpointError, ReportedError, did_you_mean
from repvgg_ref.files.lacking import completed
from repvgg_ref.files.recorded import Recorded, Records, block_of, records_of
from repvgg_ref.models.arguments import checked_eps
from weights_io import LazyArray, sanitize

AUTO = "auto"
Shape = tuple[int, ...]
_MOST_LACKING = 4
_COUNTER = "num_batches_tracked"
# Of blocks, any file may hold so many, and a larger one as many as go with so many elements each:
# networks have tens to hundreds, of many thousand elements; each costs time, however small.
_FREE_BLOCKS, _ELEMENTS_A_BLOCK = 256, 4096
STORED = {"gamma": "weight", "beta": "bias"}
"""What files call the vectors of a batch norm, where not as we do."""
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
    eps : float
        Of its batch norms, but for those in `linear` that have their own.
    is_fused : bool
        Its fused convolution is there already, beside its branches, which are only left out.
    is_told : bool
        The file holds its modules, which say what arrays cannot.
    is_unsure : bool
        What its kind's keys cannot tell is not told by modules, either.
    """

    prefix: str
    member: Member
    linear: Linear
    conv: Conv
    names: Mapping[str, str]
    owned: tuple[str, ...]
    eps: float
    is_fused: bool = False
    is_told: bool = False
    is_unsure: bool = True

    @property
    def fused(self) -> str:
        """The fused key, without its last part."""
        return f"{self.prefix}{self.member.fused}".rstrip(".")


@dataclass
class Blocks:
    """All blocks of a file, what nearly was one, and what was assumed of them.

    `left` says of prefixes why a block is none that can be fused: one whose modules are in the file
    and compute something else, or one that lacks arrays. `assumed_eps` is the eps of blocks whose
    users have several and of which nothing tells theirs.
    """

    found: list[FoundBlock] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    assumed_eps: float | None = None

    @property
    def family(self) -> str:
        """The kind of most blocks."""
        counts = Counter(block.member.name for block in self.found)
        return counts.most_common(1)[0][0] if counts else ""


def blocks_of(
    arrays: Mapping[str, LazyArray], *, family: str = AUTO, eps: float | None = None
) -> Blocks:
    """`find_blocks` among the arrays of a file, by what their modules say if it holds them."""
    shapes = {name: array.shape for name, array in arrays.items()}
    return find_blocks(shapes, family=family, eps=eps, records=records_of(arrays))


def find_blocks(
    shapes: Mapping[str, Shape],
    *,
    family: str = AUTO,
    eps: float | None = None,
    records: Records | None = None,
) -> Blocks:
    """Every block of the family among arrays of these shapes, in the file's order.

    Parameters
    ----------
    family : str
        "auto", or the only kind to look for.
    eps : float, optional
        Of all batch norms; default what their modules say, else what the kind's users have.
    records : mapping, optional
        Key -> the module that holds the array, where the file holds modules.

    Raises
    ------
    CheckpointError
        If there is no such kind, or there are more blocks than any network of this size has.
    """
    members = _members(family)
    blocks, place = Blocks(), {name: i for i, name in enumerate(shapes)}
    blocks.found = list(_search(members, shapes, blocks, records or {}))
    blocks.found.sort(key=lambda block: place[block.owned[0]])
    blocks.found = _with_eps(blocks, shapes, eps)
    _name_the_broken(members, shapes, blocks, records or {})
    blocks.notes += [f"left as it is: {why}" for why in blocks.left.values()]
    return blocks


def holds_blocks(arrays: Mapping[str, LazyArray]) -> bool:
    """Whether `blocks_of` the arrays would find one, or one that cannot be fused."""
    shapes = {name: array.shape for name, array in arrays.items()}
    members, blocks, records = _members(AUTO), Blocks(), records_of(arrays)
    if any(True for _ in _search(members, shapes, blocks, records)):
        return True
    _name_the_broken(members, shapes, blocks, records)
    return bool(blocks.left)


def _search(
    members: list[Member], shapes: Mapping[str, Shape], blocks: Blocks, records: Records
) -> Iterator[FoundBlock]:
    """The blocks, kind by kind; what is none goes to `blocks`."""
    ordered, place = sorted(shapes), {name: i for i, name in enumerate(shapes)}
    taken: set[str] = set()
    owned: set[str] = set()
    most = max(_FREE_BLOCKS, sum(map(prod, shapes.values())) // _ELEMENTS_A_BLOCK)
    for one in members:
        inner = f".{one.anchor}"
        for key in [key for key in shapes if key.endswith(inner) or key == one.anchor]:
            prefix = key[: -len(one.anchor)]
            # What asks more of a file came first; a key may be of a part of another block.
            if prefix in taken or prefix in blocks.left or key in owned:
                continue
            found = _block(one, prefix, shapes, (ordered, place), blocks, records)
            if found is None:
                continue
            taken.add(prefix)
            owned.update(found.owned)
            if len(taken) > most:
                raise CheckpointError(
                    "the file holds too many re-parameterisable blocks",
                    got=f"more than {most}",
                    wanted=f"at most {_FREE_BLOCKS}, or one in {_ELEMENTS_A_BLOCK} elements",
                )
            yield found


def _name_the_broken(
    members: list[Member], shapes: Mapping[str, Shape], blocks: Blocks, records: Records
) -> None:
    """Say of what would be a block with a few arrays more which it lacks."""
    whole = completed(shapes)
    if len(whole) == len(shapes):
        return
    known = {key for block in blocks.found for key in block.owned}
    broken = []
    for block in _search(members, whole, Blocks(left=dict(blocks.left)), records):
        prefix = block.prefix
        lacks = [key[len(prefix) :] for key in block.owned if key not in shapes]
        if lacks and known.isdisjoint(block.owned):
            more = ", ..." if len(lacks) > _MOST_LACKING else ""
            named = sanitize(", ".join(lacks[:_MOST_LACKING])) + more
            where = sanitize(prefix.rstrip(".")) or "the file's root"
            blocks.left[prefix] = f"{where}: {block.member.name} without {named}"
            broken.append(blocks.left[prefix])
    said = set(broken)
    blocks.near = broken + [near for near in blocks.near if near not in said]


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
    records: Records,
) -> FoundBlock | None:
    """The block of this kind behind `prefix`, if all of it is there.

    `order` has the keys sorted, and their places in the file.
    """
    ordered, place = order
    ends = {key[len(prefix) :]: shapes[key] for key in _behind(prefix, ordered)}
    mine = {end: shape for end, shape in ends.items() if one.owns(end)}
    leaves = {one.leaf(end): end for end in mine}
    where = sanitize(prefix.rstrip(".")) or "the file's root"
    held = {leaf: records[prefix + end] for leaf, end in leaves.items() if prefix + end in records}
    told = Recorded(held, block_of(prefix, mine, records)) if held else None
    here = tuple((leaf, mine[end]) for leaf, end in leaves.items())
    try:
        made = _expression(one.name, here) if told is None else _built(one, dict(here), told)
        if isinstance(made, ReportedError):
            raise made
        if told is not None and made is not None:
            others = ends.keys() - mine.keys() - {*one.deployed}
            strange = {end: records.get(prefix + end) for end in others}
            told.require_as_built(made[0].shapes(), one, strange)
    except ReportedError as error:  # shapes that no such block has
        blocks.near.append(f"{where}: {error}")
        if told is not None:
            blocks.left.setdefault(prefix, f"{where}: {error}")
        return None
    if made is None:
        blocks.near.append(f"{where}: its shapes are not those of {one.name}")
        return None
    linear, conv = made
    own = linear.shapes()
    names = {leaf: _key(leaf, leaves, own) for leaf in own}
    lacks = [
        end
        for leaf, end in names.items()
        if mine.get(end) != own[leaf] and not end.endswith(_COUNTER)
    ]
    if lacks:
        blocks.near.append(f"{where}: {one.name} without {sanitize(', '.join(lacks[:4]))}")
        return None
    used = {*names.values(), *(end for end in mine if re.fullmatch(one.placeholder, end))}
    if spare := [end for end in mine if end not in used and _COUNTER not in end]:
        blocks.near.append(f"{where}: {one.name} with {sanitize(', '.join(spare[:4]))} besides")
        return None
    owned = tuple(sorted((prefix + end for end in mine), key=place.__getitem__))
    deployed = one.deployed[1]
    is_own = one.names(deployed)
    if deployed in mine and not is_own:
        blocks.near.append(
            f"{where}: {sanitize(deployed)} is that of the fused convolution, or of one beside a "
            "batch norm: no key tells"
        )
        return None
    return FoundBlock(
        prefix,
        one,
        linear,
        conv,
        {leaf: prefix + end for leaf, end in names.items() if not end.endswith(_COUNTER)},
        owned,
        one.eps[0] if one.eps else 0.0,
        deployed in ends and not is_own,
        told is not None,
        told is None or not (one.told_by == "" or told.knows(one.told_by)),
    )


@lru_cache(maxsize=1024)
def _expression(
    kind: str, shapes: tuple[tuple[str, Shape], ...]
) -> tuple[Linear, Conv] | ReportedError | None:
    """`_built` of nothing but shapes, or its error: a network's blocks are much alike."""
    try:
        return _built(FAMILY[kind], dict(shapes), None)
    except ReportedError as error:
        return error.with_traceback(None)


def _built(
    one: Member, shapes: dict[str, Shape], told: Recorded | None
) -> tuple[Linear, Conv] | None:
    """What a block of these arrays computes, and the convolution that it fuses to.

    None if it is none of this kind; what no block can be raises `ReportedError`.
    """
    linear = one.build(Parts(shapes, told))
    if linear is None:
        return None
    # Of zeros, for the geometry alone: what a file says of eps may be 0, too.
    conv = one_conv(with_eps(linear, lambda _: 1.0), one.name)
    _require_no_growth(conv, shapes, one.name)
    return linear, conv


def _require_no_growth(conv: Conv, shapes: Mapping[str, Shape], kind: str) -> None:
    """Refuse a fused kernel larger than the block's own: a dilation can make it of any size."""
    own = [shape[2:] for shape in shapes.values() if len(shape) == 4] or [conv.kernel]
    largest = tuple(max(sizes) for sizes in zip(*own, strict=True))
    if any(size > most for size, most in zip(conv.kernel, largest, strict=True)):
        raise CheckpointError(
            f"{kind}: its fused kernel is larger than any of its own, whose dilations differ",
            got=f"{conv.kernel[0]} x {conv.kernel[1]}",
            wanted=f"at most {largest[0]} x {largest[1]}",
        )


def _behind(prefix: str, ordered: list[str]) -> Iterator[str]:
    """The keys that start with `prefix`."""
    for at in range(bisect_left(ordered, prefix), len(ordered)):
        if not ordered[at].startswith(prefix):
            return
        yield ordered[at]


def _key(leaf: str, ends: Mapping[str, str], shapes: Mapping[str, Shape]) -> str:
    """How a file calls an array of an expression; `ends` has those that are there."""
    start, dot, end = leaf.rpartition(".")
    if f"{start}.running_var" in shapes:
        leaf = f"{start}{dot}{STORED.get(end, end)}"
    return ends.get(leaf, leaf)


def _with_eps(blocks: Blocks, shapes: Mapping[str, Shape], eps: float | None) -> list[FoundBlock]:
    """The blocks with the eps that is asked for, else what is told, else what their users have."""
    found: list[FoundBlock] = []
    hints = tuple(any(map(pattern.search, shapes)) for pattern in (_YOLO, _OFFICIAL))
    asked = None if eps is None else checked_eps(eps)
    assumed: dict[str, float] = {}  # by kind: to look for it is to look through all keys
    notes = dict.fromkeys(blocks.notes)  # each once, in order
    for block in blocks.found:
        one, norms = block.member, list(norms_in(block.linear))
        own = [norm.eps for norm in norms if norm.eps is not None]
        said = [one.note] + ([one.untold] if block.is_unsure else [])
        if asked is not None:
            if other := next((e for e in own if e != asked), None):
                said.append(f"its modules say eps {other:g}; {asked:g} is taken, as you say")
            linear = with_eps(block.linear, lambda _: None)
            found.append(replace(block, linear=linear, eps=asked))
        elif own and len(own) == len(norms):
            if len(set(own)) > 1:
                shown = ", ".join(f"{each:g}" for each in sorted(set(own)))
                said.append(f"{block.fused}: its batch norms have eps {shown}, as its modules say")
            found.append(replace(block, eps=own[0]))
        else:
            if one.name not in assumed:
                assumed[one.name] = _eps_of(one, hints, notes)
            if block.is_told:
                said.append(f"eps {assumed[one.name]:g} is assumed where its modules do not say it")
            if blocks.assumed_eps is None and (block.is_told or _is_open(one, hints)):
                blocks.assumed_eps = assumed[one.name]
            found.append(replace(block, eps=assumed[one.name]))
        notes |= dict.fromkeys(f"{one.name}: {sanitize(each)}" for each in said if each)
    blocks.notes = list(notes)
    return found


def _is_open(one: Member, hints: tuple[bool, ...]) -> bool:
    """Whether a kind's users have several eps and no key of the file tells which."""
    return len(one.eps) > 1 and not any(hints)


def _eps_of(one: Member, hints: tuple[bool, ...], notes: dict[str, None]) -> float:
    """Of several that its users have the one that the file's other keys tell.

    `hints` says whether some are the YOLO line's, and whether some are the official network's.
    """
    if len(one.eps) < 2:
        return one.eps[0] if one.eps else 0.0
    if hints[0]:
        return max(one.eps)
    if _is_open(one, hints):
        line = (
            f"{one.name}: eps {min(one.eps):g} is assumed, which no key tells; "
            f"--eps {max(one.eps):g} is the YOLO line's"
        )
        notes.setdefault(line)
    return min(one.eps)
