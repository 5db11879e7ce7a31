"""The official names of a network's arrays, and what a dialect of names is.

Our canonical name is ``<block>.<part>``, ``stage1.0`` + ``branch_3x3.conv.weight``. A dialect says
how it writes the block and how it writes the part; parsing and printing follow from that. How the
published code of a block calls its parts stands beside the block, in `blocks.catalogue`. The
dialects of other code bases are in `files.dialects`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import KINDS, kind
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.graph import Network
from repvgg_ref.models.layers import Form
from repvgg_ref.models.parameters import param_shapes

_NORM = {"gamma": "weight", "beta": "bias"}
_NORM_BACK = {"weight": "gamma", "bias": "beta"} | {
    field: field for field in ("running_mean", "running_var", "num_batches_tracked")
}
_COUNTER = ".num_batches_tracked"
_AFFINE_LEAVES = ("conv", "fused", "down", "up")


@dataclass(frozen=True)
class Dialect:
    """The names of one code base.

    Attributes
    ----------
    stem, block : str
        How stage0 and block ``{index}`` of stage ``{stage}`` are written; `stage_offset` is
        added to our stage number.
    parts : mapping
        Start of a part's name in a block, ours -> theirs: a leaf, or all leaves of a branch.
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
        offset = _length_of_first_half(known) if self.split_stage3 else 0
        parsed: dict[str, str] = {}
        may_be_ours = self._beginning.match  # most names are no dialect's but one's
        for name in known:
            ours = ours_of_whole.get(name)
            if ours is None and may_be_ours(name) and (found := self._split(name, offset)):
                block, part = found
                known_part = self._ours(part)
                ours = f"{block}.{known_part}" if known_part else None
            if ours is not None:
                parsed.setdefault(ours, name)
        return {theirs: ours for ours, theirs in parsed.items()}

    def _write(self, name: str, half: int) -> str:
        if name in self.whole:
            return self.whole[name]
        match = _CANONICAL.fullmatch(name)
        if match is None:
            raise KeyError(name)
        stage, index, part = match["stage"], match["index"], self._theirs(match["part"])
        if index is None:
            return f"{self.stem}.{part}"
        number = int(index)
        written = str(int(stage) + self.stage_offset)
        if self.split_stage3 and stage == "3":
            written, number = ("3_first", number) if number < half else ("3_second", number - half)
        return f"{self.block.format(stage=written, index=number)}.{part}"

    def _theirs(self, part: str) -> str:
        """Our part's name in this code base."""
        start = _start_of(part, self.parts)
        if start is None:
            raise KeyError(part)
        path, _, field = part[len(start) :].rpartition(".")
        return self.parts[start] + path + (f".{_NORM.get(field, field)}" if field else "")

    def _ours(self, part: str) -> str | None:
        """Their part's name in our words; None if it names no leaf of a block."""
        starts = self._starts
        start = _start_of(part, starts)
        if start is None:
            return None
        if part == start:  # an array that is its own leaf
            return starts[start]
        ours = starts[start] + part[len(start) :]
        owner, _, field = ours.rpartition(".")
        branch, _, leaf = owner.rpartition(".")
        if branch == "fused" or not owner:
            return None
        if leaf == "bn":
            field = _NORM_BACK.get(field, "")
        elif leaf not in _AFFINE_LEAVES or field not in ("weight", "bias"):
            field = ""
        return f"{owner}.{field}" if field else None

    @cached_property
    def _starts(self) -> dict[str, str]:
        """How a part's name may begin, theirs -> ours."""
        starts = {theirs: ours for ours, theirs in self.parts.items()}
        if self.parts.get("fused") in _FUSED:  # whatever kind of block was fused
            starts |= dict.fromkeys(_FUSED, "fused") | _GATES
        return starts

    @cached_property
    def _beginning(self) -> re.Pattern[str]:
        """How the name of an array in a block begins."""
        fixed = self.block.partition("{")[0]
        return re.compile(f"(?:{re.escape(self.stem)}\\.|{re.escape(fixed)}(?:{_NUMBER}))")

    @cached_property
    def _in_block(self) -> re.Pattern[str]:
        """The name of an array in a block of a stage."""
        pattern = re.escape(self.block).replace(r"\{stage\}", f"(?P<stage>{_STAGE})")
        pattern = pattern.replace(r"\{index\}", f"(?P<index>{_NUMBER})")
        return re.compile(pattern + r"\.(?P<part>.+)")

    def _split(self, name: str, first_half: int) -> tuple[str, str] | None:
        """Their name -> (our block name, their part)."""
        if name.startswith(self.stem + "."):
            return "stage0", name[len(self.stem) + 1 :]
        match = self._in_block.fullmatch(name)
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

# In the start of a part: a file's names may have any number.
_MOST_WORDS = 6

_BLOCK = re.compile(r"stage(?P<stage>\d+)(?:\.(?P<index>\d+))?")
_CANONICAL = re.compile(_BLOCK.pattern + r"\.(?P<part>.+)")


def _half_of_stage3(canonical: Iterable[str]) -> int:
    found = (re.match(rf"stage3\.({_NUMBER})\.", name) for name in canonical)
    return (1 + max((int(m[1]) for m in found if m), default=-1)) // 2


def _length_of_first_half(names: Iterable[str]) -> int:
    found = (re.match(rf"stage3_first\.blocks\.({_NUMBER})\.", name) for name in names)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def _start_of(name: str, starts: Mapping[str, str]) -> str | None:
    """The longest of `starts` that `name` is, or begins with up to a dot."""
    found, end = None, -1
    for _ in range(_MOST_WORDS):
        end = name.find(".", end + 1)
        start = name if end < 0 else name[:end]
        if start in starts:
            found = start
        if end < 0:
            break
    return found


def _affine(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{field}": f"{theirs}.{field}" for field in ("weight", "bias")}


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{field}": f"{theirs}.{name}" for name, field in _NORM_BACK.items()}


def _aux_names(head: str) -> dict[str, str]:
    return {
        f"{head}.conv.weight": f"{head}.0.conv.weight",
        **_norm(f"{head}.bn", f"{head}.0.bn"),
        **_affine(f"{head}.linear", f"{head}.3"),
    }


_FUSED = tuple(dict.fromkeys(each.fused for each in KINDS.values() if each.keys))
_GATES = {theirs: ours for each in KINDS.values() for ours, theirs in each.gate.items()}
_KEYS = {ours: theirs for each in KINDS.values() for ours, theirs in each.keys.items()}

OFFICIAL = Dialect(
    name="official",
    stem="stage0",
    block="stage{stage}.{index}",
    parts=_KEYS | {"fused": "rbr_reparam", "se": "se"},
    whole=_affine("linear", "linear"),
)
PLUS = Dialect(
    name="plus",
    stem="stage0",
    block="stage{stage}.blocks.{index}",
    parts=_KEYS | {"fused": "rbr_reparam", "se": "post_se"},
    whole=_affine("linear", "linear")
    | _aux_names("stage1_aux")
    | _aux_names("stage2_aux")
    | _aux_names("stage3_first_aux"),
    split_stage3=True,
    se="after_relu",
)

CANONICAL = Dialect(name="canonical", stem="", block="", parts={}, whole={})
"""Our own names, for networks whose blocks are in no stage."""
TORCHVISION = replace(CANONICAL, name="torchvision")
"""The names that a network's nodes say themselves: `published_names`."""
OFFICIAL_PSPNET = replace(CANONICAL, name="official")
"""The same of a PSPNet, whose nodes say the names of the official example."""


def official_dialect(arch: Network) -> Dialect:
    """The names the official code, or the published code of its blocks, uses for `arch`."""
    base = PLUS if any(block.se == "after_relu" for block in arch.blocks) else OFFICIAL
    own = kind(arch.blocks[0].kind)
    return replace(base, parts={**base.parts, **own.gate, "fused": own.fused})


def official_names(arch: Network, form: Form) -> dict[str, str]:
    """Canonical -> official name of every array of a form.

    Blocks that are in no stage have the names that their nodes say; else the canonical ones.
    """
    if published := published_names(arch, form):
        return published
    names = param_shapes(arch, form)
    if not all(_BLOCK.fullmatch(block.name) for block in arch.blocks):
        return {name: name for name in names}
    return official_dialect(arch).names(names)


def require_params(arch: Network, form: Form, params: Mapping[str, Array]) -> None:
    """Raise `ShapeError` unless `params` are exactly this network's arrays, of real numbers.

    NumPy would broadcast an array of a wrong shape, and drop an imaginary part.
    """
    shapes = param_shapes(arch, form)
    for name, shape in shapes.items():
        array = params.get(name)
        if array is None and name.endswith(_COUNTER):
            continue
        if array is None or not hasattr(array, "dtype") or tuple(array.shape) != shape:
            held = getattr(array, "shape", None)
            got = "no array" if held is None else f"shape {tuple(held)}"
            raise ShapeError(
                f"{_key(arch, form, name)} is not as {arch.name} has it in {form} form",
                got=got,
                wanted=shape,
            )
        # V: bfloat16; O: rationals, and whatever counts in them
        if array.dtype.kind not in ("fOViu" if name.endswith(_COUNTER) else "fOV"):
            raise ShapeError(
                f"{_key(arch, form, name)} does not hold real numbers",
                got=array.dtype,
                wanted="floating point",
            )


def _key(arch: Network, form: Form, name: str) -> str:
    """What people call an array: in error messages, for it takes all names to find."""
    return official_names(arch, form).get(name, name)


def published_names(network: Network, form: Form) -> dict[str, str]:
    """Canonical name -> key in the published code, as the nodes say; empty if one does not."""
    nodes = network.nodes if form == "train" else network.evaluated
    keys = {
        f"{node.name}.{leaf}" if leaf else node.name: key
        for node in nodes
        for leaf, key in node.keys
    }
    found: dict[str, str] = {}
    for name in param_shapes(network, form):
        leaf, _, field = name.rpartition(".")
        key = (keys.get(f"{leaf}.deploy") if form == "deploy" else None) or keys.get(leaf)
        if key is None and leaf.endswith(".fused"):
            key = keys.get(leaf.removesuffix("fused") + "conv")
        if key is None:
            return {}
        found[name] = f"{key}.{_NORM.get(field, field)}"
    return found


def role_names(network: Network) -> dict[str, str]:
    """Official names of the train form in which every batch norm's part is called ``bn``.

    By such names a trainer's rules tell kernels from the rest; ``features.0.1.weight`` tells none.
    """
    names = official_names(network, "train")
    if not published_names(network, "train"):
        return names
    parts = {ours: key.rpartition(".") for ours, key in names.items()}
    return {
        ours: f"{owner}.bn.{field}" if ours.endswith((".gamma", ".beta")) else names[ours]
        for ours, (owner, _, field) in parts.items()
    }
