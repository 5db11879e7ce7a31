"""A block's expression read off the shapes of its arrays, as a file holds them.

Leaves are called as the file calls them: a `Norm` "bn1" has the keys ``bn1.weight``, ``bn1.bias``,
``bn1.running_mean`` and ``bn1.running_var``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any, NamedTuple, Protocol

from repvgg_ref.blocks.average import Average, AvgPool
from repvgg_ref.blocks.form import Pair
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import Shapes

Shape = tuple[int, ...]
_MOST = 64  # dilations: a larger one is a slip or an attack


class Geometry(NamedTuple):
    """How a convolution reads its input."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Window(NamedTuple):
    """How an average pooling does; its padding is counted."""

    kernel: Pair
    stride: Pair
    padding: Pair


class Told(Protocol):
    """What is told of a block beside its arrays, by a file that holds its modules."""

    def conv(self, name: str, shape: Shape, *, centred: bool = True) -> Geometry | None:
        """Of a convolution whose kernel has this shape; None if nothing is told."""

    def eps(self, name: str) -> float | None:
        """Of a batch norm."""

    def has(self, name: str, kind: str) -> bool | None:
        """Whether there is a submodule of this name, which must be of this kind; None: untold."""

    def window(self, name: str) -> Window:
        """Of an average pooling that is there."""

    def setting(self, path: str, name: str) -> object:
        """A plain attribute of a submodule, "" for the block's own; None: untold."""


@dataclass(frozen=True)
class Parts:
    """The shapes of a block's arrays, by the ends of their keys, and what else is told of it."""

    shapes: Shapes
    told: Told | None = None

    def has(self, name: str, kind: str) -> bool | None:
        """Whether the block has a submodule of this name, of class `kind`; None: nothing tells."""
        return None if self.told is None else self.told.has(name, kind)

    def conv(
        self,
        name: str,
        *,
        dilation: int = 1,
        like: Conv | None = None,
        skip: str = "",
        ungrouped: bool = False,
    ) -> Conv | None:
        """The centred convolution whose kernel is ``name.weight``; None if there is none.

        `like` is one that reads the same channels in the same groups; `skip` the batch norm of the
        identity beside it, which alone can tell how many channels a grouped one reads. `ungrouped`
        says that its kind is not known depthwise: a kernel (O, 1, Kh, Kw) reads one channel.
        """
        shape = self.shapes.get(f"{name}.weight", ())
        if len(shape) != 4 or 0 in shape or not shape[2] % 2 or not shape[3] % 2:
            return None
        outputs, per_group, rows, columns = shape
        told = None if self.told is None else self.told.conv(name, shape)
        if like is not None and (outputs, per_group) != (
            like.out_channels,
            like.in_channels // like.groups,
        ):
            return None
        if told is not None:
            inputs, bias = per_group * told.groups, f"{name}.bias" in self.shapes
            return Conv(name, inputs, outputs, (rows, columns), *told, bias)
        if not 1 <= dilation <= _MOST:
            return None
        inputs = per_group if ungrouped else self._inputs(skip, outputs, per_group)
        if like is not None:
            inputs = like.in_channels
        return Conv(
            name,
            inputs,
            outputs,
            (rows, columns),
            (1, 1),
            (dilation * (rows // 2), dilation * (columns // 2)),
            (dilation if rows > 1 else 1, dilation if columns > 1 else 1),
            inputs // per_group,
            f"{name}.bias" in self.shapes,
        )

    def _inputs(self, skip: str, outputs: int, per_group: int) -> int:
        """Channels that a convolution reads.

        Without an identity none of its arrays depends on the groups: depthwise, or ungrouped.
        """
        seen = self.shapes.get(f"{skip}.running_mean", ())
        groups = seen[0] // per_group if len(seen) == 1 else 0
        if groups and seen[0] % per_group == 0 and outputs % groups == 0:
            return seen[0]
        return outputs if per_group == 1 else per_group

    def first(self, name: str) -> int:
        """The first extent of an array; 0 if it is not there, or has none."""
        return next(iter(self.shapes.get(name, ())), 0)

    def norm(self, name: str, channels: int) -> Norm | None:
        """The batch norm called `name`, if it is there and has as many channels."""
        vectors = [self.shapes.get(f"{name}.{part}") for part in ("weight", "running_var")]
        return Norm(name, channels, self.eps(name)) if vectors == 2 * [(channels,)] else None

    def eps(self, name: str) -> float | None:
        """That of the batch norm called `name`, if it is told."""
        return None if self.told is None else self.told.eps(name)

    def average(self, name: str, channels: int) -> AvgPool:
        """The average pooling called `name`, which `has` knows of."""
        assert self.told is not None
        window = self.told.window(name)
        conv = Conv(name, channels, channels, *window, groups=channels)
        return AvgPool(conv, Average(channels, window.kernel))

    def conv_bn(
        self,
        conv: str,
        norm: str,
        *,
        dilation: int = 1,
        like: Conv | None = None,
        skip: str = "",
        ungrouped: bool = False,
    ) -> Chain | None:
        """A convolution and its batch norm; None unless both are there."""
        found = self.conv(conv, dilation=dilation, like=like, skip=skip, ungrouped=ungrouped)
        after = None if found is None else self.norm(norm, found.out_channels)
        return None if found is None or after is None else Chain(found, after)

    def identity_bn(self, norm: str, like: Conv) -> list[Chain]:
        """The identity with its batch norm, if that is there."""
        after = self.norm(norm, like.out_channels)
        same = like.in_channels == like.out_channels
        return (
            [Chain(Identity("x", like.in_channels, like.groups), after)] if after and same else []
        )

    def copies(self, copies: str, scale: str, skip: str) -> Sum | None:
        """MobileOne's sum: convolutions, a 1x1 one and the identity, a batch norm behind each.

        `scale` and `skip` may be missing; None where the `copies` are not alike, or none is there.
        """
        start = f"{copies}."
        count = len({n[len(start) :].split(".")[0] for n in self.shapes if n.startswith(start)})
        branches: list[Chain] = []
        main: Conv | None = None
        for i in range(count):
            found = self.conv_bn(f"{start}{i}.conv", f"{start}{i}.bn", like=main, skip=skip)
            if found is None:
                return None
            main = main or found.parts[0]
            branches.append(found)
        if main is None:
            return None
        point = self.conv_bn(f"{scale}.conv", f"{scale}.bn", like=main)
        if point is not None and is_wide(point):
            return None
        return Sum(*branches, *([point] if point else []), *self.identity_bn(skip, main))


def renamed(linear: Any, keys: Mapping[str, str]) -> Any:
    """An expression of the catalogue with its leaves called as a file calls them."""

    def rename(leaf: Any) -> Any:
        named = any(each.name == "name" for each in fields(leaf))
        return replace(leaf, name=_key(leaf.name, keys)) if named else leaf

    return _mapped(linear, rename)


def with_eps(linear: Any, pick: Callable[[str], float | None]) -> Any:
    """An expression whose batch norms have the eps that `pick` has for their names."""

    def settle(leaf: Any) -> Any:
        return replace(leaf, eps=pick(leaf.name)) if isinstance(leaf, Norm) else leaf

    return _mapped(linear, settle)


def depthwise(linear: Any) -> Any:
    """An expression of one channel read as one of as many as it gives, each by itself."""
    channels = linear.out_channels

    def settle(leaf: Any) -> Any:
        alone = isinstance(leaf, Conv)
        return replace(leaf, in_channels=channels, groups=channels) if alone else leaf

    return _mapped(linear, settle)


def norms_in(linear: Any) -> Iterator[Norm]:
    """All batch norms of an expression."""
    if isinstance(linear, Norm):
        yield linear
    for part in getattr(linear, "parts", ()):
        yield from norms_in(part)


def _mapped(linear: Any, change: Callable[[Any], Any]) -> Any:
    """An expression with every dataclass in it changed, inner ones first."""
    if isinstance(linear, Sum | Chain):
        return type(linear)(*(_mapped(part, change) for part in linear.parts))
    if not is_dataclass(linear) or isinstance(linear, type):
        return linear
    values = {each.name: getattr(linear, each.name) for each in fields(linear)}
    inner = {name: _mapped(v, change) for name, v in values.items() if is_dataclass(v)}
    return change(replace(linear, **inner) if inner else linear)


def _key(name: str, keys: Mapping[str, str]) -> str:
    for ours in sorted(keys, key=len, reverse=True):
        if name == ours or name.startswith(ours + "."):
            return keys[ours] + name[len(ours) :]
    return name


def is_wide(chain: Chain) -> bool:
    """Whether what should be a 1x1 convolution is none."""
    kernel: tuple[int, int] = chain.parts[0].kernel
    return kernel != (1, 1)


def is_number(shape: tuple[int, ...] | None) -> bool:
    """Whether an array of this shape is there, and holds one number."""
    return shape is not None and prod(shape) == 1
