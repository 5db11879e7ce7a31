"""A part of a graph that may become one convolution: which, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

from repvgg_ref.blocks.form import Lattice, Pair
from repvgg_ref.blocks.sided import SidedConv
from repvgg_ref.files.onnx_graph.reader import LinearReader
from repvgg_ref.files.onnx_graph.reading import LeftError, Reading, blocks_of, regrouped
from repvgg_ref.files.onnx_graph.view import View

_PER_ELEMENT = frozenset({"BatchNormalization", "Mul", "Div", "Neg", "AveragePool"})


class Window(NamedTuple):
    """A fused kernel as ONNX can say it: no negative padding, but taps of zero before and behind.

    `padding` is (top, left, bottom, right).
    """

    lattice: Lattice
    before: Pair
    behind: Pair
    padding: tuple[int, int, int, int]

    @property
    def kernel(self) -> Pair:
        """Its size, with what is added."""
        rows, columns = (
            a + n + b for a, n, b in zip(self.before, self.lattice.size, self.behind, strict=True)
        )
        return rows, columns


@dataclass(frozen=True)
class Part:
    """Nodes that become one convolution.

    Attributes
    ----------
    output : str
        The tensor that it makes.
    node : int
        The node that made it.
    reading : Reading
    linear : Linear
        The same for fusion.
    conv : SidedConv
        What it fuses to, on the algebra's lattice.
    groups : int
        At least those of `conv`.
    window : Window
    nodes : tuple of int
        Those that go.
    macs_before, macs_after : Fraction
        Multiply-accumulates a pixel of the output.
    """

    output: str
    node: int
    reading: Reading
    linear: Any
    conv: SidedConv
    groups: int
    window: Window
    nodes: tuple[int, ...]
    macs_before: Fraction
    macs_after: Fraction


def built(reader: LinearReader, at: int, name: str, reading: Reading, nodes: Iterable[int]) -> Part:
    """The part that `reading` is, in place of `nodes`; whatever it costs.

    Raises
    ------
    LeftError
        If it ends in one of several outputs, or nothing is left of images of the file's size.
    """
    view = reader.view
    if (size := view.size(name)) is not None and min(size) < 1:
        raise LeftError("nothing is left of images of this size")
    if len(view.nodes[at].output) > 1:
        raise LeftError("a part that ends in one of several outputs is not taken out")
    window, fixed = _window(reading), is_fixed(view, reading)
    linear = regrouped(reading.linear, reading.linear.groups)
    groups, inputs, outputs = blocks_of(linear), linear.in_channels, linear.out_channels
    macs = sum((_macs(reader, i, reading, fixed=fixed) for i in nodes), start=Fraction(0))
    lattice = reading.lattice
    conv = SidedConv(
        "fused", inputs, outputs, lattice.size, reading.stride,
        (-lattice.first[0], -lattice.first[1]), lattice.step, linear.groups, bias=True,
    )  # fmt: skip
    return Part(
        output=name,
        node=at,
        reading=reading,
        linear=linear,
        conv=conv,
        groups=groups,
        window=window,
        nodes=tuple(sorted(nodes)),
        macs_before=macs / area(view, name, reading, fixed=fixed),
        macs_after=Fraction(outputs * (inputs // groups) * prod(window.kernel)),
    )


def _window(reading: Reading) -> Window:
    """Padding of at least 0 on every side: a kernel that begins inside gets zeros before it."""
    lattice, growth = reading.lattice, reading.growth
    before, behind, begins, ends = [], [], [], []
    for axis in (0, 1):
        first, step, size = (each[axis] for each in lattice)
        front = max(0, -(-first // step))
        begin = front * step - first
        end = growth[axis] + step * (front + size - 1) - begin
        back = max(0, -(end // step))
        before.append(front)
        behind.append(back)
        begins.append(begin)
        ends.append(end + back * step)
    return Window(
        lattice,
        (before[0], before[1]),
        (behind[0], behind[1]),
        (begins[0], begins[1], ends[0], ends[1]),
    )


def _macs(reader: LinearReader, at: int, reading: Reading, *, fixed: bool) -> Fraction:
    """Multiply-accumulates of a node: of the image, or for each pixel of the part's source."""
    view, node = reader.view, reader.view.nodes[at]
    name = next(each for each in node.output if each)
    there = within(reader, name, reading.source)
    if there is None:
        return Fraction(0)
    operator = view.operator(node)
    if operator == "Conv":
        kernel = view.constant(node.input[1])
        each = 0 if kernel is None else kernel.size
    elif operator in _PER_ELEMENT:
        each = there.channels or 0
    else:
        each = 0
    return each * area(view, name, there, fixed=fixed)


def within(reader: LinearReader, name: str, source: str) -> Reading | None:
    """How a tensor is read from another one, if it is."""
    return next((r for r in reader.readings.get(name, []) if r.source == source), None)


def is_fixed(view: View, reading: Reading) -> bool:
    """Whether the file fixes the size of every tensor of a part."""
    names = [name for i in reading.nodes for name in view.nodes[i].output if name]
    return all(view.size(name) is not None for name in (reading.source, *names))


def area(view: View, name: str, reading: Reading, *, fixed: bool) -> Fraction:
    """Pixels of an image, or for each one of the source."""
    size = view.size(name)
    if fixed and size is not None:
        return Fraction(prod(max(n, 0) for n in size))  # inference goes below zero
    return Fraction(1, prod(reading.stride))
