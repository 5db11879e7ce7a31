"""How a tensor depends on another one before it, in the words of the algebra.

A tensor has several readings: from each place before it, as far back as everything between is
linear and one convolution equals it, borders included. `rules` says what operators do to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Concat, Slice
from repvgg_ref.blocks.form import Lattice, Pair, union
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Sum
from repvgg_ref.blocks.run import EVERYTHING, Linear, Reader
from repvgg_ref.blocks.sided import SameSize, SidedConv
from weights_io import sanitize

POINT = Lattice((0, 0), (1, 1), (1, 1))
# A chain of sums that double has more terms than any memory.
_MOST_LEAVES = 128
_MOST_TAPS = 1 << 14


class LeftError(Exception):
    """Why something is left as it is: the reason, for people."""


# What nobody thought of: the part at hand is left, and the rest of the graph is done.
UNFORESEEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def unforeseen(error: Exception) -> str:
    """The reason that is said where one of those was raised."""
    said = f"{type(error).__name__}: {error}"
    return f"this is a bug in repvgg-ref, please report it: {sanitize(said)}"


@dataclass(frozen=True)
class Reading:
    """A tensor as a linear expression of `source`.

    Attributes
    ----------
    source : str
        The tensor that it is read from.
    parts : tuple
        What stands in a `Chain`; none for the source itself.
    lattice : Lattice
        Where the taps lie.
    channels : int, optional
        Of the tensor; None where they are not known, which is so of sources only.
    nodes : frozenset of int
        The nodes in between.
    leaves : int
        How many constructors it is made of.
    of_this_size : bool
        Whether it holds only for images of the size that the file fixes.
    """

    source: str
    parts: tuple[Any, ...] = ()
    lattice: Lattice = POINT
    channels: int | None = None
    nodes: frozenset[int] = frozenset()
    leaves: int = 0
    of_this_size: bool = False

    @property
    def linear(self) -> Linear:
        """The expression."""
        if not self.parts:
            return Identity(self.source, self._known, self._known)
        return self.parts[0] if len(self.parts) == 1 else Chain(*self.parts)

    @property
    def stride(self) -> Pair:
        """Pixels of the source from one pixel to the next."""
        return self.linear.stride if self.parts else (1, 1)

    @property
    def growth(self) -> Pair:
        """As `Linear.growth`."""
        return self.linear.growth if self.parts else (0, 0)

    @property
    def _known(self) -> int:
        if self.channels is None:
            raise LeftError(f"how many channels {self.source} has is not known")
        return self.channels

    def passed(self, node: int) -> Reading:
        """The same, behind a node that changes nothing."""
        return replace(self, nodes=self.nodes | {node})

    def then(self, part: Any, node: int, channels: int | None = None) -> Reading:
        """The same, scaled or shifted by `part`, a norm's `channels` deciding where ours is not."""
        known = replace(self, channels=self.channels or channels)
        return known._grown((*(known.parts or (known.linear,)), part), node)

    def through(
        self, part: SidedConv | Slice, node: int, arrays: Mapping[str, Array], eps: float
    ) -> Reading:
        """The same through a convolution, or some of its channels.

        Raises
        ------
        LeftError
            If no single convolution is both, borders included.
        """
        channels = self.channels or part.in_channels
        if channels != part.in_channels:
            raise LeftError(f"it takes {part.in_channels} channels and is given {channels}")
        if isinstance(part, SidedConv) and part.reads_outside and self.parts:
            _require_border(self, arrays, eps)
        lattice = _composed(part.lattice, self.stride, self.lattice)
        grown = self._grown((*self.parts, part), node)
        return replace(grown, lattice=lattice, channels=part.out_channels)

    def sized(self) -> Reading:
        """The same, as what holds for images of this size only."""
        return replace(self, of_this_size=True)

    def _grown(self, parts: tuple[Any, ...], node: int) -> Reading:
        if self.leaves + 1 > _MOST_LEAVES:
            raise LeftError(f"the linear part has more than {_MOST_LEAVES} terms")
        return replace(self, parts=parts, nodes=self.nodes | {node}, leaves=self.leaves + 1)


def summed(readings: Sequence[Reading], node: int, *, same_size: bool) -> Reading:
    """Their sum; `same_size` says that the file fixes sizes, and that they are equal."""
    first = readings[0]
    _require_alike("channels", [each.channels for each in readings])
    _require_alike("stride", [each.stride for each in readings])
    alike = len({each.growth for each in readings}) == 1
    if not alike and not same_size:
        raise LeftError("its inputs grow differently at the border: not of one size on all images")
    terms = [
        part
        for each in readings
        for part in (each.linear.parts if type(each.linear) is Sum else (each.linear,))
    ]
    whole = (Sum if alike else SameSize)(*terms)
    return _joined(readings, whole, node, first.channels, not alike)


def stacked(readings: Sequence[Reading], node: int) -> Reading:
    """One behind the other along the channels."""
    _require_alike("stride", [each.stride for each in readings])
    _require_alike("growth", [each.growth for each in readings])
    whole = Concat(*(each.linear for each in readings))
    return _joined(readings, whole, node, whole.out_channels, False)


def _joined(
    readings: Sequence[Reading], whole: Linear, node: int, channels: int | None, sized: bool
) -> Reading:
    leaves = sum(max(each.leaves, 1) for each in readings)
    if leaves > _MOST_LEAVES:
        raise LeftError(f"the linear part has more than {_MOST_LEAVES} terms")
    return Reading(
        readings[0].source,
        (whole,),
        union([each.lattice for each in readings]),
        channels,
        frozenset({node}).union(*(each.nodes for each in readings)),
        leaves,
        sized or any(each.of_this_size for each in readings),
    )


def _require_alike(what: str, values: Sequence[Any]) -> None:
    if len(set(values)) > 1:
        raise LeftError(f"its inputs differ in {what}: {', '.join(map(str, values))}")


def _composed(second: Lattice, stride: Pair, first: Lattice) -> Lattice:
    """Rule 8: taps at stride * t2 + t1."""
    if np.prod([*second.size, *first.size], dtype=float) > _MOST_TAPS:
        raise LeftError("the kernel would have too many taps")
    points = [
        Lattice((stride[0] * a + c, stride[1] * b + d), (1, 1), (1, 1))
        for a, b in second.offsets()
        for c, d in first.offsets()
    ]
    return union(points)


def _require_border(reading: Reading, arrays: Mapping[str, Array], eps: float) -> None:
    """The border law: zeros around a tensor must be what its expression gives there."""
    pointwise = reading.lattice.offsets() == [(0, 0)] and reading.stride == (1, 1)
    if not pointwise or reading.growth != (0, 0):
        rows, columns = reading.lattice.size
        raise LeftError(
            f"its padding of zeros stands around the output of a {rows}x{columns} convolution, "
            "which is not zero there: one convolution would be right in the interior only"
        )
    read = Reader(arrays, eps, exact=True)
    bias = reading.linear.form(read, EVERYTHING, slice(0, 1)).bias
    if bias.any():
        largest = float(max(abs(each) for each in bias))
        raise LeftError(
            "its padding of zeros stands around a tensor that is shifted: one convolution would "
            f"see the shift there, up to {largest:.3g}"
        )


def regrouped(linear: Any, groups: int) -> Any:
    """The same with identities of so many groups, so that sums need not expand anything."""
    if isinstance(linear, Identity):
        return replace(linear, groups=groups)
    if isinstance(linear, Sum | Chain):
        return type(linear)(*(regrouped(part, groups) for part in linear.parts))
    return linear


def blocks_of(linear: Any) -> int:
    """Into how many groups the kernel falls: more than the algebra's, where channels are sliced."""
    groups = int(linear.groups)
    if not _slices(linear):
        return groups
    reach = _reach(linear)
    outputs, inputs = reach.shape
    for count in range(int(np.gcd(outputs, inputs)), groups, -1):
        if outputs % count or inputs % count:
            continue
        # (G, O/G, G, C/G) -> (G, G)
        blocks = reach.reshape(count, outputs // count, count, inputs // count).any(axis=(1, 3))
        if not (blocks & ~np.eye(count, dtype=bool)).any():
            return count
    return groups


def _slices(linear: Any) -> bool:
    parts = getattr(linear, "parts", ())
    return isinstance(linear, Slice | Concat) or any(_slices(part) for part in parts)


def _reach(linear: Any) -> Array:
    """Which output depends on which input, (O, C) of booleans."""
    if isinstance(linear, Conv):
        outputs, inputs = (n // linear.groups for n in (linear.out_channels, linear.in_channels))
        blocks: Array = np.kron(np.eye(linear.groups), np.ones((outputs, inputs))) > 0
        return blocks
    if isinstance(linear, Identity):
        return np.eye(linear.channels, dtype=bool)
    if isinstance(linear, Slice):
        return np.eye(linear.channels, dtype=bool)[linear.start : linear.stop]
    if isinstance(linear, Concat):
        return np.concatenate([_reach(part) for part in linear.parts])
    if isinstance(linear, Sum):
        return np.asarray(np.any([_reach(part) for part in linear.parts], axis=0))
    found = [_reach(part) for part in linear.parts if hasattr(part, "form")]
    whole: Array = found[0]
    for after in found[1:]:
        whole = np.asarray(after.astype(np.float32) @ whole.astype(np.float32) > 0)
    return whole
