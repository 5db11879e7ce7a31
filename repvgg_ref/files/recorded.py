"""What a pickled module says of its layers beside their arrays, each setting checked.

A whole module says what no state dict can: eps, stride, padding, dilation, groups. What it says is
a file's word, so every number is held against the arrays and against what a layer can have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from repvgg_ref.blocks.form import Pair
from repvgg_ref.blocks.member import Member
from repvgg_ref.blocks.parts import Geometry, Shape, Window
from repvgg_ref.errors import CheckpointError
from weights_io import LazyArray, ModuleRecord, sanitize

_IDENTITY = "torch.nn.modules.linear.Identity"
_AVERAGE = "torch.nn.modules.pooling.AvgPool2d"
_NEUTRAL = (_IDENTITY, *(f"torch.nn.modules.dropout.Dropout{end}" for end in ("", "2d")))
_DROPPED = ("DropPath", "DropBlock2d")  # torch has none: each library has its own
_CONTAINERS = "torch.nn.modules.container."
SUMMED = f"{_CONTAINERS}ModuleList"  # whose parts no container runs one behind the other
# What stands behind the sum, whatever it is: it stays, and reads what the fused convolution makes.
_BEHIND = ("act", "activation", "nonlinear", "nonlinearity", "relu", "attn", "se", "post_se")
# Published blocks whose kernels are made of arrays of their own, under no convolution's name.
_MADE_HERE = ("OREPA", "OREPA_1x1", "OREPA_3x3_RepVGG", "SeqConv3x3")
# Classes that compute what their names say. Any other, though it is made of one, may scale, shift
# or standardise: what it does stands in code, which is never asked.
_CONVS = ("torch.nn.modules.conv.Conv2d",)
_NORMS = (
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    # timm's, whose dropout and activation are submodules, and looked at as such.
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.models.layers.norm_act.BatchNormAct2d",
)
_ADDS_INPUT = "IdentityBasedConv1x1"  # of W + I, in older diverse-branch blocks
_IN_ORDER = "torch.nn.modules.container.Sequential"
# What blocks of the family multiply a branch or the sum by, or add.
_FACTORS = ("alpha", "beta", "gamma", "scale", "layer_scale")
_NO_FACTOR = "alpha", 1.0  # what super-gradients writes where it has none; it only multiplies
_MOST = 64  # a larger stride or dilation is a slip or an attack
Records = Mapping[str, ModuleRecord]


def records_of(arrays: Mapping[str, LazyArray]) -> dict[str, ModuleRecord]:
    """The module of each array that has one."""
    return {name: a.module for name, a in arrays.items() if a.module is not None}


def block_of(prefix: str, ends: Iterable[str], records: Records) -> ModuleRecord:
    """The module of a block, above those that hold the arrays `ends` behind its prefix."""
    end = next(end for end in ends if prefix + end in records)
    found = records[prefix + end]
    for _ in range(end.count(".")):
        found = found.parent or found
    return found


class Recorded:
    """`blocks.parts.Told` of one block, by the modules that hold its arrays.

    Parameters
    ----------
    records : mapping
        A leaf of the block's expression -> the module that holds the array.
    own : ModuleRecord
        The block's own module.
    """

    def __init__(self, records: Records, own: ModuleRecord) -> None:
        self._records, self._own = records, own
        self._start = len(own.path) + 1 if own.path else 0
        self._modules = {leaf.rpartition(".")[0]: found for leaf, found in records.items()}

    def conv(self, name: str, shape: Shape, *, centred: bool = True) -> Geometry | None:
        """Of the convolution `name`, whose kernel has this shape."""
        if (found := self._modules.get(name)) is None:
            return None
        if is_made_here := self._path(found) != name:
            self._require_made_here(found)
        return geometry_of(found, shape, centred=centred, is_made_here=is_made_here)

    def eps(self, name: str) -> float | None:
        """Of the batch norm `name`."""
        return eps_of(self._modules[name]) if name in self._modules else None

    def has(self, name: str, kind: str) -> bool | None:
        """Whether the block has a submodule `name`; None if it has no attribute of that name.

        Raises
        ------
        CheckpointError
            If its class is not torch's `kind`, or called so where torch has none.
        """
        if (found := self._own.children.get(name)) is None:
            return False if self.knows(name) else None
        known = {"Identity": _IDENTITY, "AvgPool2d": _AVERAGE}
        if known.get(kind, kind) not in (found.type_name, _name(found)):
            raise cannot(found, "it is no branch of such a block", found.type_name, kind)
        return True

    def setting(self, path: str, name: str) -> object:
        """A plain attribute of the submodule at `path`; None if either is not there."""
        found = self._at(path)
        return None if found is None else found.get(name)

    def knows(self, name: str) -> bool:
        """Whether the block has an attribute or a submodule of that name, be it None."""
        return name in self._own.children or self._own.has(name)

    def window(self, name: str) -> Window:
        """Of the average pooling at the path `name` in the block.

        Raises
        ------
        CheckpointError
            If there is none, or one that no convolution equals.
        """
        pool = self._at(name)
        if pool is None or pool.type_name != _AVERAGE:
            got = "nothing" if pool is None else pool.type_name
            raise cannot(pool or self._own, f"its {name} is no average", got, _AVERAGE)
        sizes = (_pair(pool, what) for what in ("kernel_size", "stride", "padding"))
        counted = pool.get("count_include_pad"), pool.get("ceil_mode"), pool.get("divisor_override")
        if counted != (True, False, None):
            raise cannot(pool, "its border is averaged otherwise", counted, (True, False, None))
        return Window(*sizes)

    def require_as_built(
        self, leaves: Iterable[str], one: Member, others: Mapping[str, ModuleRecord | None]
    ) -> None:
        """Raise `CheckpointError` if a module of the block may compute another thing.

        `leaves` are its arrays in the order in which they are met, `others` those behind its prefix
        that the kind `one` has not. Whatever the block's module holds must be a part that the kind
        knows, with arrays or without, or stand behind the sum.
        """
        for leaf, found in self._records.items():
            if found is self._own:
                continue
            if self._path(found) == leaf.rpartition(".")[0]:
                require_known(found, leaf)
            else:
                self._require_made_here(found)
        paths = [leaf.rpartition(".")[0] for leaf in leaves]
        met = (self._modules[path] for path in paths if path in self._modules)
        require_in_order(met, self._own)
        for name in _FACTORS:
            factor = self._own.get(name)
            if type(factor) in (float, int) and (name, factor) != _NO_FACTOR:
                raise cannot(self._own, f"its {name} is no array", factor, "an array, or None")
        inside = {id(found): found for found in self._all()}
        for end, holder in others.items():
            if holder is not None and id(holder) in inside:
                why = "it has an array that no such block has"
                raise cannot(holder, why, end, f"the arrays of {one.name}")
        for found in inside.values():
            require_unaltered(found)
            require_own_container(found)
            for child in found.children.values():
                if id(child) not in inside:
                    self._require_part(found, child, one)

    def _require_made_here(self, found: ModuleRecord) -> None:
        """Raise `CheckpointError` if nothing tells what a module makes of arrays of its own.

        The block's own class is as good as its keys.
        """
        if found is not self._own and _name(found) not in _MADE_HERE:
            why = "a kernel's class that may compute another thing"
            raise cannot(found, why, found.type_name, " or ".join(_MADE_HERE))

    def _require_part(self, above: ModuleRecord, child: ModuleRecord, one: Member) -> None:
        """Raise `CheckpointError` unless a part without arrays of the block changes nothing."""
        path = self._path(child)
        if re.fullmatch(one.beside, path):
            return  # its kind looks at it, if it matters
        if above is self._own and not re.fullmatch(one.neutral, path):
            is_fused = path == one.fused and child.type_name in _CONVS
            if not is_fused and path not in _BEHIND:
                raise cannot(child, f"no {one.name} has such a part", child.type_name, "None")
        elif _last(child) not in _BEHIND and self._is_sum(above, one):
            raise cannot(child, "it stands among branches that are summed", child.type_name, "None")
        else:
            require_neutral(child)

    def _is_sum(self, above: ModuleRecord, one: Member) -> bool:
        """Whether what it holds are branches."""
        return above.type_name == SUMMED or bool(re.fullmatch(one.summed, self._path(above)))

    def _path(self, found: ModuleRecord) -> str:
        """Where it stands in the block."""
        return found.path[self._start :]

    def _at(self, path: str) -> ModuleRecord | None:
        found: ModuleRecord | None = self._own
        for name in filter(None, path.split(".")):
            found = None if found is None else found.children.get(name)
        return found

    def _all(self) -> Iterator[ModuleRecord]:
        for found in self._records.values():
            one: ModuleRecord | None = found
            while one is not None and one is not self._own:
                yield one
                one = one.parent
        yield self._own


def require_known(found: ModuleRecord, name: str) -> None:
    """Raise `CheckpointError` if the module of the array `name` is of a class that nobody knows."""
    if _last(found) == "idconv1":  # it adds its input, and is no convolution as torch has it
        _require_class(found, (), "convolution", _ADDS_INPUT)
    elif name.endswith(".weight") and found.has("kernel_size"):
        _require_class(found, _CONVS, "convolution")
    elif name.endswith(".running_var"):
        _require_class(found, _NORMS, "batch norm")


def _require_class(found: ModuleRecord, known: tuple[str, ...], what: str, own: str = "") -> None:
    if found.type_name not in known and found.type_name.rpartition(".")[2] != own:
        why = f"a {what} of a class that may compute another thing"
        raise cannot(found, why, found.type_name, own or " or ".join(known[:2]))


def require_in_order(met: Iterable[ModuleRecord], top: ModuleRecord | None = None) -> None:
    """Raise `CheckpointError` if a Sequential has its parts in another order than they are met.

    Nothing above `top` is looked at.
    """
    parts: dict[int, tuple[ModuleRecord, dict[int, ModuleRecord]]] = {}
    for found in met:
        child = found
        while child is not top and (above := child.parent) is not None:
            parts.setdefault(id(above), (above, {}))[1].setdefault(id(child), child)
            child = above
    for above, seen in parts.values():
        if above.type_name != _IN_ORDER or len(seen) < 2:
            continue
        there = [child for child in above.children.values() if id(child) in seen]
        wanted = list(seen.values())
        if any(one is not other for one, other in zip(there, wanted, strict=True)):
            got, known = (", ".join(_last(each) for each in some[:4]) for some in (there, wanted))
            raise cannot(above, "its parts are in another order", got, sanitize(known))


def require_own_container(found: ModuleRecord) -> None:
    """Raise `CheckpointError` if a class is called as a container of torch's and is none."""
    name = _name(found)
    if name in ("Sequential", "ModuleList", "ModuleDict") and (
        found.type_name != _CONTAINERS + name
    ):
        why = "a container of a class that may compute another thing"
        raise cannot(found, why, found.type_name, _CONTAINERS + name)


def _last(found: ModuleRecord) -> str:
    return found.path.rpartition(".")[2]


def _name(found: ModuleRecord) -> str:
    """Of its class, without its module."""
    return found.type_name.rpartition(".")[2]


def require_neutral(child: ModuleRecord) -> None:
    """Raise `CheckpointError` if a module in a branch does anything in evaluation."""
    require_unaltered(child)
    if child.type_name == _IN_ORDER:
        for each in child.children.values():
            require_neutral(each)
    elif child.type_name not in _NEUTRAL and _name(child) not in _DROPPED:
        raise cannot(child, "it stands in a branch of a block", child.type_name, "Identity")


def require_unaltered(found: ModuleRecord) -> None:
    """Raise `CheckpointError` if a module may compute another thing than its class does."""
    if found.altered:
        raise CheckpointError(
            f"{_where(found)}: {found.altered}",
            got=f"a pickled {sanitize(found.type_name)}",
            wanted="a module as its class makes it",
            advice="save its state dict where its code is",
        )


def geometry_of(
    found: ModuleRecord, shape: Shape, *, centred: bool = True, is_made_here: bool = False
) -> Geometry:
    """How a convolution with a kernel of this shape reads its input.

    If it `is_made_here`, of other arrays, its module need be no convolution of torch's.

    Raises
    ------
    CheckpointError
        If its class is not torch's, its module does not say so, or says what such a kernel cannot
        have; if `centred`, also if its padding does not keep the size.
    """
    if not is_made_here:
        _require_class(found, _CONVS, "convolution")
    outputs, per_group, *kernel = shape
    groups = _count(found, "groups", outputs)
    stride, dilation = _pair(found, "stride"), _pair(found, "dilation")
    if min(stride + dilation) < 1 or max(stride + dilation) > _MOST:
        got = f"stride {stride}, dilation {dilation}"
        raise cannot(found, "no stride or dilation is so", got, f"from 1 to {_MOST}")
    said = {
        "kernel_size": tuple(kernel),
        "in_channels": per_group * groups,
        "out_channels": outputs,
    }
    for name, wanted in said.items():
        if not found.has(name):
            continue
        is_told: object = _pair(found, name) if name == "kernel_size" else found.get(name)
        if is_told != wanted:
            raise cannot(found, f"its {name} is not that of its kernel", is_told, wanted)
    if outputs % groups:
        raise cannot(found, "its groups do not divide its outputs", groups, outputs)
    mode = found.get("padding_mode") if found.has("padding_mode") else "zeros"
    if mode != "zeros" or found.get("transposed") not in (None, False):
        got = f"padding_mode {mode!r}, transposed {found.get('transposed')}"
        raise cannot(found, "it is no convolution padded by zeros", got, "zeros, not transposed")
    padding = _padding(found, kernel, dilation)
    middle = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    if centred and (padding != middle or not all(k % 2 for k in kernel)):
        raise cannot(found, "its padding does not keep the kernel in the middle", padding, middle)
    return Geometry(stride, padding, dilation, groups)


def eps_of(found: ModuleRecord) -> float | None:
    """What a batch norm adds to its variance; None if its module does not say.

    Raises
    ------
    CheckpointError
        If its class is no batch norm's, or that is no number, or none that has a root.
    """
    _require_class(found, _NORMS, "batch norm")
    if not found.has("eps"):
        return None
    eps = found.get("eps")
    if type(eps) not in (int, float) or not 0 <= eps < math.inf:  # type: ignore[operator]
        raise cannot(found, "its eps is none", eps, "a number of at least 0")
    return float(eps)  # type: ignore[arg-type]


def _padding(found: ModuleRecord, kernel: list[int], dilation: Pair) -> Pair:
    """On both sides of an axis; torch has two words for it."""
    padding = found.get("padding")
    if padding == "valid":
        return 0, 0
    if padding == "same" and all(k % 2 for k in kernel) and _pair(found, "stride") == (1, 1):
        rows, columns = (d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
        return rows, columns
    found_pair = _pair(found, "padding")
    if not 0 <= min(found_pair) <= max(found_pair) <= _MOST * max(kernel):
        raise cannot(found, "no padding is so", found_pair, "pixels on both sides")
    return found_pair


def _pair(found: ModuleRecord, name: str) -> Pair:
    value = found.get(name)
    if type(value) is int:
        return value, value
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise cannot(found, f"it does not say its {name}", value, "an integer or two")


def _count(found: ModuleRecord, name: str, most: int) -> int:
    value = found.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise cannot(found, f"it does not say its {name}", value, f"from 1 to {most}")
    return value


def _where(found: ModuleRecord) -> str:
    return sanitize(found.path) or "the root"


def cannot(found: ModuleRecord, what: str, got: object, wanted: object) -> CheckpointError:
    """The error for a module that says what it cannot be."""
    return CheckpointError(
        f"{_where(found)}, a pickled {sanitize(found.type_name)}: {what}",
        got=sanitize(got),
        wanted=str(wanted),
        advice="save its state dict where its code is, if the file is sound",
    )
