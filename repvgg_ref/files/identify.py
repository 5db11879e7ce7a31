"""Which network is this? Answered from the shapes of its arrays alone, never from a file's name.

The shapes of the official models differ pairwise. Strides, and with them the identity branches,
follow from position: the first block of every stage has stride 2, so A0's ``stage1.0`` has no
identity although its input and output widths are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.architectures import NAMES, Architecture, AuxHeadSpec, architecture
from repvgg_ref.models.parameters import Form

Shape = tuple[int, ...]

_BLOCK = re.compile(r"(?P<block>stage(?P<stage>\d+)(?:\.(?P<index>\d+))?)\.")


def form_of(canonical: Mapping[str, object]) -> str:
    """Say "train", "deploy", "mixed" or "unknown", from the branches that are there."""
    fused = any(".fused." in name for name in canonical)
    branches = any(".branch_" in name for name in canonical)
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
    only_3x3: bool = False,
) -> Architecture:
    """The architecture whose canonical arrays have these shapes.

    Parameters
    ----------
    shapes : mapping
        Canonical name -> shape.
    se : {"before_relu", "after_relu"}
        Where squeeze-and-excitation sits if there is any: the order leaves no trace in shapes.
    model : str
        "auto"; "custom", which also accepts a network whose blocks all lack a branch (the
        ablations of the paper's Table 6); or an official name that must be met.
    only_3x3 : bool
        The code base writes no other branch (a batch norm re-inserted after a fused kernel).

    Raises
    ------
    CheckpointError
        If the shapes are no RepVGG, or not the `model` asked for.
    """
    found = _inferred(shapes, form, se, free_branches=model == "custom" or only_3x3)
    if model == "auto":
        return _named(found)
    if model == "custom":
        return found
    wanted = architecture(model, num_classes=found.num_classes, in_channels=found.in_channels)
    if form == "train" and not only_3x3:
        same = [replace(b, has_identity=False) for b in found.blocks] == [
            replace(b, has_identity=False) for b in wanted.blocks
        ]
    else:
        same = _fused_geometry(found) == _fused_geometry(wanted)
    if not same:
        raise CheckpointError(
            f"the shapes are not those of {wanted.name}",
            got=_named(found).name + " with channels " + _channels(found),
            wanted="channels " + _channels(wanted),
            advice="leave --model auto to see what the file holds",
        )
    return wanted if not only_3x3 else replace(found, name=wanted.name)


def _named(found: Architecture) -> Architecture:
    """`found` under its official name, if it has the shapes and the class count of one."""
    for name in NAMES:
        official = architecture(name)
        if found.num_classes == official.num_classes and found.blocks == official.blocks:
            return replace(found, name=official.name)
    return found


def closest_official(found: Architecture) -> str | None:
    """The official model with the same blocks but another class or input channel count."""
    geometry = _fused_geometry(found)[1:]
    for name in NAMES:
        if _fused_geometry(architecture(name))[1:] == geometry:
            return name
    return None


def _fused_geometry(arch: Architecture) -> list[tuple[object, ...]]:
    return [(b.in_channels, b.out_channels, b.stride, b.groups, b.se) for b in arch.blocks]


def _channels(arch: Architecture) -> str:
    return ",".join(str(block.out_channels) for block in arch.blocks)


def _inferred(
    shapes: Mapping[str, Shape], form: Form, se: SqueezeExcitation, *, free_branches: bool
) -> Architecture:
    kernel = "fused" if form == "deploy" else "branch_3x3.conv"
    names = _block_names(shapes)
    has_1x1 = not free_branches or any(".branch_1x1." in name for name in shapes)
    has_skip = not free_branches or any(".branch_identity." in name for name in shapes)
    has_se = any(".se." in name for name in shapes)
    blocks: list[BlockSpec] = []
    for name in names:
        weight = _shape(shapes, f"{name}.{kernel}.weight", 4)
        entry = blocks[-1].out_channels if blocks else weight[1]
        stride = 2 if name == "stage0" or name.endswith(".0") else 1
        if weight[2:] != (3, 3) or weight[1] == 0 or entry % weight[1] or weight[0] == 0:
            raise CheckpointError(
                f"{name}: the kernel does not follow the block before it",
                got=f"shape {weight}",
                wanted=f"(O, C/G, 3, 3) with C/G a divisor of {entry}",
                advice="the file holds no plain chain of RepVGG blocks",
            )
        se_channels = _shape(shapes, f"{name}.se.down.weight", 4)[0] if has_se else 0
        blocks.append(
            BlockSpec(
                name=name,
                in_channels=entry,
                out_channels=weight[0],
                stride=stride,
                groups=entry // weight[1],
                se=se if has_se else "none",
                se_channels=se_channels,
                has_1x1=has_1x1,
                has_identity=has_skip and entry == weight[0] and stride == 1,
            )
        )
    head = _shape(shapes, "linear.weight", 2)
    aux = tuple(
        AuxHeadSpec(name, after, _shape(shapes, f"{name}.conv.weight", 4)[0])
        for name, after in _aux_positions(names).items()
        if f"{name}.conv.weight" in shapes
    )
    return Architecture("custom", tuple(blocks), head[0], aux)


def _block_names(shapes: Mapping[str, Shape]) -> list[str]:
    """Block names in network order; a gap in the numbering is an error."""
    found = {
        (int(match["stage"]), int(match["index"] or 0)): match["block"]
        for match in map(_BLOCK.match, shapes)
        if match
    }
    ordered = sorted(found)
    wanted = {(0, 0)} | {
        (stage, index)
        for last_stage, _ in ordered[-1:]
        for stage in range(1, last_stage + 1)
        for index in range(1 + max((i for s, i in ordered if s == stage), default=0))
    }
    if missing := sorted(wanted - set(ordered))[:8]:
        raise CheckpointError(
            "blocks are missing from the chain",
            got=f"{len(ordered)} blocks",
            wanted="also " + ", ".join(f"stage{s}.{i}" if s else "stage0" for s, i in missing),
            advice="the file is incomplete, or holds another network",
        )
    return [found[key] for key in ordered]


def _aux_positions(names: list[str]) -> dict[str, str]:
    """Where RepVGGplus hangs its heads: after stage 1, stage 2, and half of stage 3."""
    stages = {n: [name for name in names if name.startswith(f"stage{n}.")] for n in (1, 2, 3)}
    if not all(stages.values()):
        return {}
    middle = stages[3][max(0, len(stages[3]) // 2 - 1)]
    return {
        "stage1_aux": stages[1][-1],
        "stage2_aux": stages[2][-1],
        "stage3_first_aux": middle,
    }


def _shape(shapes: Mapping[str, Shape], name: str, rank: int) -> Shape:
    if name not in shapes:
        raise CheckpointError(
            f"{name} is missing, so the network cannot be told",
            got=f"{len(shapes)} arrays",
            wanted=name,
            advice="the file is incomplete, or holds a backbone without its head",
        )
    if len(shapes[name]) != rank:
        raise CheckpointError(
            f"{name} has the wrong number of dimensions",
            got=f"shape {shapes[name]}",
            wanted=f"{rank} dimensions",
        )
    return shapes[name]
