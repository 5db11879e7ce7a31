"""How other code bases name the arrays of a RepVGG: one table a dialect, read in both directions.

Our canonical name is ``<block>.<part>``, ``stage1.0`` + ``branch_3x3.conv.weight``. A dialect says
how it writes the block and how it writes the part; parsing and printing follow from that. A fused
kernel followed by a batch norm again (the official ``insert_bn.py``, for quantisation) is a block
with nothing but its 3x3 branch, so it needs a table and no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from repvgg_ref.models.architectures import Architecture

_BN = {
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}
_AFFINE = ("weight", "bias")


def _bn(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in _BN.items()}


def _affine(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{field}": f"{theirs}.{field}" for field in _AFFINE}


def _branches(dense: str, point: str, skip: str, conv: str, bn: str) -> dict[str, str]:
    return {
        "branch_3x3.conv.weight": f"{dense}.{conv}.weight",
        **_bn("branch_3x3.bn", f"{dense}.{bn}"),
        "branch_1x1.conv.weight": f"{point}.{conv}.weight",
        **_bn("branch_1x1.bn", f"{point}.{bn}"),
        **_bn("branch_identity.bn", skip),
    }


_OFFICIAL_BRANCHES = _branches("rbr_dense", "rbr_1x1", "rbr_identity", "conv", "bn")
_OFFICIAL_FUSED = _affine("fused", "rbr_reparam")


@dataclass(frozen=True)
class Dialect:
    """The names of one code base.

    Attributes
    ----------
    stem, block : str
        How stage0 and block ``{index}`` of stage ``{stage}`` are written; `stage_offset` is
        added to our stage number.
    parts : mapping
        Our part of a block -> theirs.
    whole : mapping
        Our names outside blocks -> theirs.
    split_stage3 : bool
        RepVGGplus writes stage 3 in two halves, each counted from 0.
    shape_wrappers : bool
        Vectors come as (1, C, 1, 1) and grouped kernels as (G, O/G, C/G, K, K): MegEngine.
    se : str
        Where this code base puts squeeze-and-excitation.
    """

    name: str
    stem: str
    block: str
    parts: Mapping[str, str]
    whole: Mapping[str, str]
    stage_offset: int = 0
    split_stage3: bool = False
    shape_wrappers: bool = False
    se: str = "before_relu"

    def names(self, canonical: Iterable[str]) -> dict[str, str]:
        """Canonical name -> this dialect's name, for all of `canonical`."""
        known = list(canonical)
        half = _half_of_stage3(known) if self.split_stage3 else 0
        return {name: self._write(name, half) for name in known}

    def parse(self, names: Iterable[str]) -> dict[str, str]:
        """The dialect's name -> canonical name, for those of `names` that it knows.

        Of two names for one array the second stays unknown.
        """
        known = list(names)
        ours_of_whole = {theirs: ours for ours, theirs in self.whole.items()}
        ours_of_part = {theirs: ours for ours, theirs in self.parts.items()}
        offset = _length_of_first_half(known) if self.split_stage3 else 0
        parsed: dict[str, str] = {}
        for name in known:
            ours = ours_of_whole.get(name)
            if ours is None and (found := self._split(name, offset)):
                block, part = found
                ours = f"{block}.{ours_of_part[part]}" if part in ours_of_part else None
            if ours is not None:
                parsed.setdefault(ours, name)
        return {theirs: ours for ours, theirs in parsed.items()}

    def _write(self, name: str, half: int) -> str:
        if name in self.whole:
            return self.whole[name]
        match = _CANONICAL.fullmatch(name)
        if match is None:
            raise KeyError(name)
        stage, index, part = match["stage"], match["index"], self.parts[match["part"]]
        if index is None:
            return f"{self.stem}.{part}"
        number = int(index)
        written = str(int(stage) + self.stage_offset)
        if self.split_stage3 and stage == "3":
            written, number = ("3_first", number) if number < half else ("3_second", number - half)
        return f"{self.block.format(stage=written, index=number)}.{part}"

    def _split(self, name: str, first_half: int) -> tuple[str, str] | None:
        """Their name -> (our block name, their part)."""
        if name.startswith(self.stem + "."):
            return "stage0", name[len(self.stem) + 1 :]
        pattern = re.escape(self.block).replace(r"\{stage\}", f"(?P<stage>{_STAGE})")
        pattern = pattern.replace(r"\{index\}", f"(?P<index>{_NUMBER})")
        match = re.fullmatch(pattern + r"\.(?P<part>.+)", name)
        if match is None:
            return None
        stage, index = match["stage"], int(match["index"])
        if stage.endswith("_second"):
            index += first_half
        number = int(stage.removesuffix("_first").removesuffix("_second")) - self.stage_offset
        if number < 1:  # stage 0 is the stem
            return None
        return f"stage{number}.{index}", match["part"]


# Strict and short: no leading zeros, no other alphabet's digits, no stage 10**12.
_NUMBER = "(?:0|[1-9][0-9]{0,3})"
_STAGE = f"{_NUMBER}(?:_first|_second)?"

_CANONICAL = re.compile(r"stage(?P<stage>\d+)(?:\.(?P<index>\d+))?\.(?P<part>.+)")


def _half_of_stage3(canonical: Iterable[str]) -> int:
    found = (re.match(rf"stage3\.({_NUMBER})\.", name) for name in canonical)
    return (1 + max((int(m[1]) for m in found if m), default=-1)) // 2


def _length_of_first_half(names: Iterable[str]) -> int:
    found = (re.match(rf"stage3_first\.blocks\.({_NUMBER})\.", name) for name in names)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def _aux_names(head: str) -> dict[str, str]:
    return {
        f"{head}.conv.weight": f"{head}.0.conv.weight",
        **_bn(f"{head}.bn", f"{head}.0.bn"),
        **_affine(f"{head}.linear", f"{head}.3"),
    }


OFFICIAL = Dialect(
    name="official",
    stem="stage0",
    block="stage{stage}.{index}",
    parts=_OFFICIAL_BRANCHES
    | _OFFICIAL_FUSED
    | _affine("se.down", "se.down")
    | _affine("se.up", "se.up"),
    whole=_affine("linear", "linear"),
)
OFFICIAL_BN = Dialect(
    name="official-bn",
    stem="stage0",
    block="stage{stage}.{index}",
    parts={
        "branch_3x3.conv.weight": "rbr_reparam.conv.weight",
        **_bn("branch_3x3.bn", "rbr_reparam.bn"),
    },
    whole=_affine("linear", "linear"),
)
PLUS = Dialect(
    name="plus",
    stem="stage0",
    block="stage{stage}.blocks.{index}",
    parts=_OFFICIAL_BRANCHES
    | _OFFICIAL_FUSED
    | _affine("se.down", "post_se.down")
    | _affine("se.up", "post_se.up"),
    whole=_affine("linear", "linear")
    | _aux_names("stage1_aux")
    | _aux_names("stage2_aux")
    | _aux_names("stage3_first_aux"),
    split_stage3=True,
    se="after_relu",
)
TIMM = Dialect(
    name="timm",
    stem="stem",
    block="stages.{stage}.{index}",
    parts=_branches("conv_kxk", "conv_1x1", "identity", "conv", "bn")
    | _affine("fused", "reparam_conv")
    | _affine("se.down", "attn.fc1")
    | _affine("se.up", "attn.fc2"),
    whole=_affine("linear", "head.fc"),
    stage_offset=-1,
)
MMPRETRAIN = Dialect(
    name="mmpretrain",
    stem="backbone.stem",
    block="backbone.stage_{stage}.{index}",
    parts=_branches("branch_3x3", "branch_1x1", "branch_norm", "conv", "norm")
    | _affine("fused", "branch_reparam")
    | _affine("se.down", "se_layer.conv1.conv")
    | _affine("se.up", "se_layer.conv2.conv"),
    whole=_affine("linear", "head.fc"),
)
MEGENGINE = Dialect(
    name="megengine",
    stem="stage0",
    block="stage{stage}.{index}",
    parts=_OFFICIAL_BRANCHES
    | _OFFICIAL_FUSED
    | _affine("se.down", "se.f_ex.0")
    | _affine("se.up", "se.f_ex.2"),
    whole=_affine("linear", "head.fc"),
    shape_wrappers=True,
)

DIALECTS = (OFFICIAL, OFFICIAL_BN, PLUS, TIMM, MMPRETRAIN, MEGENGINE)


def official_dialect(arch: Architecture) -> Dialect:
    """The names the official code uses for `arch`."""
    return PLUS if any(block.se == "after_relu" for block in arch.blocks) else OFFICIAL


def recognise(names: Iterable[str]) -> tuple[Dialect, dict[str, str]] | None:
    """The dialect that knows most of `names`, and its reading of them; None if none knows any."""
    known = list(names)
    readings = [(dialect, dialect.parse(known)) for dialect in DIALECTS]
    best = max(readings, key=lambda reading: len(reading[1]))
    return best if any(name.startswith("stage") for name in best[1].values()) else None
