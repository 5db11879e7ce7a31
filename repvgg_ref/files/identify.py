"""Which network is this? Answered from the shapes of its arrays alone, never from a file's name.

The shapes of the official models differ pairwise. Strides and dilations leave no trace in shapes,
but for one: a block that adds its input has stride 1. What nobody says is assumed by position: the
first block of every stage has stride 2, so A0's ``stage1.0`` has no identity although its input and
output widths are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import weights_io
from repvgg_ref.blocks.block import SE_FIELDS
from repvgg_ref.blocks.catalogue import KINDS, RESIDUAL_REORG, block_kind
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.lazy_params import is_counter
from repvgg_ref.files.strides import part_names, require_stride, with_input
from repvgg_ref.models.architectures import (
    NAMES,
    Architecture,
    AuxHeadSpec,
    architecture,
    aux_positions,
)
from repvgg_ref.models.geometry import Geometry, usual_stride
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import chains, find_name
from repvgg_ref.models.residual_reorg import reorganised

Shape = tuple[int, ...]

UNSAID = Geometry()
MOST_BLOCKS = 512
"""Of a chain; the longest official network has 57. A block takes time, however small it is."""
_BLOCK = re.compile(r"(?P<block>stage(?P<stage>\d+)(?:\.(?P<index>\d+))?)\.")


def block_of(canonical: str) -> str | None:
    """The block of a chain that an array of this name is in; None if it is in none."""
    found = _BLOCK.match(canonical)
    return None if found is None else found["block"]


def form_of(canonical: Mapping[str, object]) -> str:
    """Say "train", "deploy", "mixed" or "unknown", from the parts of blocks that are there."""
    parts = {name[m.end() :] for name in canonical if (m := _BLOCK.match(name))}
    fused = any(part.startswith("fused.") for part in parts)
    branches = any(not part.startswith(("fused.", "se.")) for part in parts)
    return {
        (True, False): "deploy",
        (False, True): "train",
        (True, True): "mixed",
        (False, False): "unknown",
    }[fused, branches]


def identify(
    shapes: Mapping[str, Shape],
    form: Form,
    *,
    se: SqueezeExcitation = "before_relu",
    model: str = "auto",
    block: str = "auto",
    said: Geometry = UNSAID,
) -> Architecture:
    """The architecture whose canonical arrays have these shapes.

    Parameters
    ----------
    shapes : mapping
        Canonical name -> shape.
    se : {"before_relu", "after_relu"}
        Where squeeze-and-excitation sits if there is any: the order leaves no trace in shapes.
    model : str
        "auto"; "custom", which gives no network an official name; or an official name that must
        be met.
    block : str
        "auto", or the one kind of block that it must be; a batch norm re-inserted after a fused
        kernel is "plain". Ablations of the paper's Table 6, whose blocks all lack a branch, are
        found if nothing else is missing: `looks_the_same` says what else that may be.
    said : Geometry
        Strides and dilations of some blocks.

    Raises
    ------
    CheckpointError
        If the shapes are no RepVGG, or not the `model` asked for, or not with strides as `said`.
    """
    found = _inferred(shapes, form, se, _kinds(block), said)
    named = _named(found, form)
    if model == "auto" or named.name == find_name(model):
        return named
    if model == "custom":
        return found
    classes = found.num_classes  # of a backbone: none
    official = architecture(
        model, num_classes=classes or 1, in_channels=found.in_channels, block=found.blocks[0].kind
    )
    wanted = replace(official, num_classes=classes)
    same = _in_place_of(wanted, found, form)
    if same is None:
        raise CheckpointError(
            f"the shapes are not those of {wanted.name}",
            got=named.name + " with channels " + _channels(found),
            wanted="channels " + _channels(wanted),
            advice="leave --model auto to see what the file holds",
        )
    return same


def _kinds(block: str) -> list[str]:
    """The kinds of block that a file may hold, likeliest first."""
    if block != "auto":
        return [block_kind(block).name]
    named = [each for each in KINDS.values() if each.keys]
    return [each.name for each in sorted(named, key=lambda each: not each.auto)]


_LOST = {
    "plain": ("a 3x3 convolution and its batch norm alone", "1x1 and identity branches"),
    "identity-only": ("no 1x1 branch", "1x1 branches"),
    "1x1-only": ("no identity branch", "identity branches"),
}


def looks_the_same(block: str) -> str:
    """Of a kind of block that was told from keys, what else the file may be; "" if nothing is."""
    if block not in _LOST:
        return ""
    held, lost = _LOST[block]
    same = "; identity-without-bn has the same keys" * (block == "1x1-only")
    return (
        f"every block holds {held}: taken as {block} blocks. A RepVGG file that lost all its"
        f" {lost} looks the same{same} (--block says which it is)"
    )


def fitting_kinds(arch: Architecture, shapes: Mapping[str, Shape]) -> list[str]:
    """The kinds of block with which `arch`, in train form, has just the arrays of these names."""
    held = {name for name in shapes if not is_counter(name)}
    return [
        name
        for name, each in KINDS.items()
        if each.keys and held == {n for n in _train_names(arch, name) if not is_counter(n)}
    ]


def _train_names(arch: Architecture, block: str) -> dict[str, Shape]:
    blocks = tuple(replace(spec, kind=block) for spec in arch.blocks)
    return param_shapes(replace(arch, blocks=blocks), "train")


def _named(found: Architecture, form: Form) -> Architecture:
    """`found` under its official name, if it has the shapes and the class count of one."""
    kind_of = found.blocks[0].kind
    for official in (*(architecture(name, block=kind_of) for name in NAMES), *chains()):
        same = _in_place_of(official, found, form)
        alike = (official.blocks[0].kind, official.num_classes) == (kind_of, found.num_classes)
        if same is not None and alike:
            return replace(found, name=same.name, blocks=same.blocks)
    return found


def _in_place_of(wanted: Architecture, found: Architecture, form: Form) -> Architecture | None:
    """`wanted` with the strides and dilations of `found`, if the two have the same arrays."""
    if len(wanted.blocks) != len(found.blocks):
        return None
    blocks = tuple(
        replace(own, stride=its.stride, dilation=its.dilation, adds_input=its.adds_input)
        for own, its in zip(wanted.blocks, found.blocks, strict=True)
    )
    same = replace(wanted, blocks=blocks)
    fits = blocks == found.blocks if form == "train" else _fused(same) == _fused(found)
    return same if fits else None


def closest_official(found: Network) -> str | None:
    """The official model with the same blocks but another class or input channel count."""
    known: Iterable[Network] = map(architecture, NAMES)
    if found.kinds == (RESIDUAL_REORG,):
        known = reorganised()
    blocks = _fused(found)[1:]
    return next((each.name for each in known if _fused(each)[1:] == blocks), None)


def _fused(arch: Network) -> list[tuple[object, ...]]:
    """What the arrays of fused blocks say of them."""
    return [(b.in_channels, b.out_channels, b.groups, b.se, b.kernel) for b in arch.blocks]


def _channels(arch: Architecture) -> str:
    return ",".join(str(block.out_channels) for block in arch.blocks)


def _inferred(
    shapes: Mapping[str, Shape],
    form: Form,
    se: SqueezeExcitation,
    kinds: list[str],
    said: Geometry,
) -> Architecture:
    names = _block_names(shapes)
    kernels = _kernels(shapes)
    said.require_blocks(names)
    blocks: list[BlockSpec] = []
    wide: set[int] = set()  # sizes of the kernels so far, but for 1x1
    for name in names:
        weight, copies = _main_kernel(shapes, name, form, kernels.get(name, []))
        entry = blocks[-1].out_channels if blocks else weight[1]
        wide |= {weight[3]} - {1}
        square = weight[2] == weight[3] and weight[2] % 2 and len(wide) <= 1
        if not square or weight[1] == 0 or entry % weight[1] or weight[0] == 0:
            raise CheckpointError(
                f"{name}: the kernel does not follow the block before it",
                got=f"shape {weight}",
                wanted=f"(O, C/G, K, K), one odd K for all and C/G a divisor of {entry}",
                advice="the file holds no plain chain of re-parameterisable blocks",
            )
        gated = any(f"{name}.se.{part}" in shapes for part in SE_FIELDS)
        se_channels = required_shape(shapes, f"{name}.se.down.weight", 4)[0] if gated else 0
        blocks.append(
            BlockSpec(
                name=name,
                in_channels=entry,
                out_channels=weight[0],
                stride=said.strides.get(name, usual_stride(name)),
                groups=entry // weight[1],
                dilation=said.dilations.get(name, 1),
                se=se if gated else "none",
                se_channels=se_channels,
                kernel=weight[2],
                copies=copies,
            )
        )
    ends = {"linear.weight", "linear.bias"} & shapes.keys()
    classes = required_shape(shapes, "linear.weight", 2)[0] if ends else 0  # a backbone has no head
    aux = tuple(
        AuxHeadSpec(name, after, required_shape(shapes, f"{name}.conv.weight", 4)[0])
        for name, after in aux_positions(names).items()
        if f"{name}.conv.weight" in shapes
    )
    found = _of_kind(blocks, shapes, form, kinds, said)
    _require_gates(found, shapes)
    return Architecture("custom", found, classes, aux)


def _require_gates(blocks: tuple[BlockSpec, ...], shapes: Mapping[str, Shape]) -> None:
    """Raise unless all blocks have a gate or none has, or the last ones, as in MobileOne-S4."""
    gated = [spec.se != "none" for spec in blocks]
    first = gated.index(True) if any(gated) and KINDS[blocks[0].kind].gate else 0
    if any(gated) and not all(gated[first:]):
        required_shape(shapes, f"{blocks[gated.index(False, first)].name}.se.down.weight", 4)


def _of_kind(
    blocks: list[BlockSpec],
    shapes: Mapping[str, Shape],
    form: Form,
    kinds: list[str],
    said: Geometry,
) -> tuple[BlockSpec, ...]:
    """The blocks as the first of `kinds` that has just these arrays, else as the closest."""
    if form == "deploy":
        return tuple(replace(spec, kind=kinds[0]) for spec in blocks)
    held: dict[str, set[str]] = {spec.name: set() for spec in blocks}
    for name in shapes:
        if ".se." not in name and (match := _BLOCK.match(name)):
            held[match["block"]].add(name[match.end() :])
    counted = any(is_counter(part) for parts in held.values() for part in parts)
    best: tuple[BlockSpec, ...] = ()
    fewest = -1
    for kind in kinds:
        candidate = tuple(
            with_input(_of_copies(replace(spec, kind=kind)), held[spec.name], counted, said)
            for spec in blocks
        )
        apart = sum(len(part_names(s, counted=counted) ^ held[s.name]) for s in candidate)
        # what lacks some arrays of two kinds is a damaged file of the likelier one
        may_lack = KINDS[kind].auto or len(kinds) == 1
        if fewest < 0 or (apart < fewest and (may_lack or apart == 0)):
            best, fewest = candidate, apart
    for spec in best:
        require_stride(spec, held[spec.name], counted)
    return best


def _of_copies(spec: BlockSpec) -> BlockSpec:
    """The block without copies, where its kind has none."""
    if spec.copies == 1:
        return spec
    single = replace(spec, copies=1)
    return single if part_names(single) == part_names(spec) else spec


def _kernels(shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """The names of every block's kernels."""
    found: dict[str, list[str]] = {}
    for name in shapes:
        if name.endswith("conv.weight") and (match := _BLOCK.match(name)):
            found.setdefault(match["block"], []).append(name)
    return found


def _main_kernel(
    shapes: Mapping[str, Shape], name: str, form: Form, kernels: list[str]
) -> tuple[Shape, int]:
    """The block's largest square kernel, which says its channels and groups, and how often."""
    if form == "deploy":
        return required_shape(shapes, f"{name}.fused.weight", 4), 1
    names = kernels or [f"{name}.branch_3x3.conv.weight"]
    found = [required_shape(shapes, part, 4) for part in names]
    largest = max(found, key=lambda shape: shape[2:])
    return largest, found.count(largest)


def _block_names(shapes: Mapping[str, Shape]) -> list[str]:
    """Block names in network order; a gap in the numbering is an error."""
    found = {
        (int(match["stage"]), int(match["index"] or 0)): match["block"]
        for match in map(_BLOCK.match, shapes)
        if match
    }
    require_few_blocks(len(found))
    ordered = sorted(found)
    missing = list(islice((key for key in _without_gaps(ordered) if key not in found), 8))
    if missing:
        raise CheckpointError(
            "blocks are missing from the chain",
            got=f"{len(ordered)} blocks",
            wanted="also " + ", ".join(f"stage{s}.{i}" if s else "stage0" for s, i in missing),
            advice="the file is incomplete, or holds another network",
        )
    return [found[key] for key in ordered]


def require_few_blocks(count: int) -> None:
    """Raise `LimitError` if a file's names speak of more blocks than `MOST_BLOCKS`."""
    if count > MOST_BLOCKS:
        raise weights_io.LimitError(
            "the network has too many blocks", got=count, wanted=f"at most {MOST_BLOCKS}"
        )


def _without_gaps(ordered: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Stage and index of the blocks of a whole network with these last ones, in order."""
    yield 0, 0
    tops = dict(ordered)  # the last index of every stage
    for stage in range(1, 1 + (ordered[-1][0] if ordered else 0)):
        for index in range(1 + tops.get(stage, 0)):
            yield stage, index


class MissingArrayError(CheckpointError):
    """An array is missing without which the network cannot be told; `name` says which."""

    def __init__(self, name: str, held: int, others: Iterable[str] = ()) -> None:
        self.name, self.held = name, held
        module, _, parameter = name.rpartition(".")
        parts = (f"{name}_", f"{module}.parametrizations.{parameter}.")
        kept = next((other for other in others if other.startswith(parts)), None)
        advice = "the file is incomplete, or holds another network"
        if kept is not None:
            advice = (
                f"it is kept in parts, such as {weights_io.sanitize(kept)}: save it after torch's"
                " remove_parametrizations (of older weight norms remove_weight_norm)"
            )
        super().__init__(
            f"{name} is missing, so the network cannot be told",
            got=f"{held} arrays of names that are known",
            wanted=name,
            advice=advice,
        )


def required_shape(shapes: Mapping[str, Shape], name: str, rank: int) -> Shape:
    """The shape of an array that must be there, in so many dimensions."""
    if name not in shapes:
        raise MissingArrayError(name, len(shapes))
    if len(shapes[name]) != rank:
        raise CheckpointError(
            f"{name} has the wrong number of dimensions",
            got=f"shape {shapes[name]}",
            wanted=f"{rank} dimensions",
        )
    return shapes[name]
