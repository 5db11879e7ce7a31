"""Which linear parts of a graph become one convolution each, and why the others do not.

From the graph's end to its beginning every tensor is read from as far back as one convolution
equals what is between, and computes no more than the nodes that go for it. What else reads a tensor
in between keeps the nodes that make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

from repvgg_ref.blocks.form import Lattice, Pair
from repvgg_ref.blocks.sided import SidedConv
from repvgg_ref.files.onnx_graph.reader import LinearReader
from repvgg_ref.files.onnx_graph.reading import LeftError, Reading, blocks_of, regrouped
from repvgg_ref.files.onnx_graph.view import FLOATS, View

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


class Left(NamedTuple):
    """A node that is not merged with what is before it, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What becomes of a graph."""

    parts: tuple[Part, ...]
    left: tuple[Left, ...]

    @property
    def gone(self) -> frozenset[int]:
        """The nodes that are replaced."""
        return frozenset(i for part in self.parts for i in part.nodes)


def planned(reader: LinearReader) -> Plan:
    """Choose the parts, from the graph's end."""
    view = reader.view
    parts: list[Part] = []
    gone: set[int] = set()
    needed: set[str] = set(view.outputs)  # what must be there when all is done
    reasons = dict(reader.reasons)
    for at in range(len(view.nodes) - 1, -1, -1):
        if at in gone:
            continue
        for name in view.nodes[at].output:
            part, why = _best(reader, at, name, gone, needed)
            if why is not None:
                reasons[at] = f"{reasons[at]}; {why}" if at in reasons else why
            if part is not None:
                parts.append(part)
                gone.update(part.nodes)
                needed.add(part.reading.source)
    return Plan(tuple(reversed(parts)), _left(reader, reasons, gone))


def _best(
    reader: LinearReader, at: int, name: str, gone: set[int], needed: set[str]
) -> tuple[Part | None, str | None]:
    """The part that ends in a tensor and saves most convolutions, then most multiply-accumulates.

    With it, why the farthest reading is no part.
    """
    view = reader.view
    found: list[Part] = []
    first: str | None = None
    for reading in reader.readings.get(name, []):
        convs = [i for i in reading.nodes if view.operator(view.nodes[i]) == "Conv"]
        if not convs or len(reading.nodes) == 1:
            continue
        try:
            found.append(_part(reader, at, name, reading, gone, needed))
        except LeftError as why:
            if not found:
                first = first or str(why)
    return max(found, key=lambda part: _gain(view, part), default=None), first


def _gain(view: View, part: Part) -> tuple[int, Fraction, int]:
    convs = sum(view.operator(view.nodes[i]) == "Conv" for i in part.nodes)
    return convs, part.macs_before - part.macs_after, len(part.nodes)


def _part(
    reader: LinearReader, at: int, name: str, reading: Reading, gone: set[int], needed: set[str]
) -> Part:
    """The part, or `LeftError`."""
    view = reader.view
    if len(view.nodes[at].output) > 1:
        raise LeftError("a part that ends in one of several outputs is not taken out")
    _require_type(view, name, reading)
    window = _window(reading)
    linear = regrouped(reading.linear, reading.linear.groups)
    groups, inputs, outputs = blocks_of(linear), linear.in_channels, linear.out_channels
    dead = _dead(view, at, reading, gone, needed)
    fixed = _is_fixed(view, reading)
    before = sum((_macs(reader, i, reading, fixed=fixed) for i in dead), start=Fraction(0))
    area = _area(view, name, reading, fixed=fixed)
    after = outputs * (inputs // groups) * prod(window.kernel) * area
    kept = [i for i in reading.nodes - set(dead) if view.operator(view.nodes[i]) == "Conv"]
    if len(dead) < 2 or not any(view.operator(view.nodes[i]) == "Conv" for i in dead):
        raise LeftError(_shared(view, kept or sorted(reading.nodes - set(dead)), gone))
    if after > before:
        there = f"; {_shared(view, kept, gone)}" if kept else ""
        raise LeftError(
            f"one convolution from {reading.source} would take {float(after / area):.6g} "
            f"multiply-accumulates a pixel in place of {float(before / area):.6g}{there}"
        )
    lattice = reading.lattice
    conv = SidedConv(
        "fused", inputs, outputs, lattice.size, reading.stride,
        (-lattice.first[0], -lattice.first[1]), lattice.step, linear.groups, bias=True,
    )  # fmt: skip
    return Part(
        name, at, reading, linear, conv, groups, window, tuple(dead), before / area, after / area
    )


def _require_type(view: View, name: str, reading: Reading) -> None:
    before, after = view.dtype(reading.source), view.dtype(name)
    if before and after and before != after:
        raise LeftError(f"{reading.source} is {before} and {name} {after}")


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


def _dead(view: View, at: int, reading: Reading, gone: set[int], needed: set[str]) -> list[int]:
    """The nodes that nobody needs once the part is one convolution."""
    dead = {at}
    for i in sorted(reading.nodes - {at}, reverse=True):
        names = [name for name in view.nodes[i].output if name]
        readers = {r for name in names for r in view.readers[name]}
        if readers <= dead | gone and not needed.intersection(names):
            dead.add(i)
    return sorted(dead)


def _shared(view: View, kept: list[int], gone: set[int]) -> str:
    """Why nodes must stay."""
    for i in kept:
        for name in view.nodes[i].output:
            if name in view.outputs:
                return f"{name} is an output of the graph, and would be computed twice"
            others = [view.label(r) for r in view.readers[name] if r not in gone]
            if len(others) > 1:
                return f"{name} is read by {', '.join(others)}, and would be computed twice"
    return "what it reads is needed elsewhere, and would be computed twice"


def _macs(reader: LinearReader, at: int, reading: Reading, *, fixed: bool) -> Fraction:
    """Multiply-accumulates of a node: of the image, or for each pixel of the part's source."""
    view, node = reader.view, reader.view.nodes[at]
    name = next(each for each in node.output if each)
    within = _within(reader, name, reading.source)
    if within is None:
        return Fraction(0)
    operator = view.operator(node)
    if operator == "Conv":
        kernel = view.constant(node.input[1])
        each = 0 if kernel is None else kernel.size
    elif operator in _PER_ELEMENT:
        each = within.channels or 0
    else:
        each = 0
    return each * _area(view, name, within, fixed=fixed)


def _within(reader: LinearReader, name: str, source: str) -> Reading | None:
    return next((r for r in reader.readings.get(name, []) if r.source == source), None)


def _is_fixed(view: View, reading: Reading) -> bool:
    """Whether the file fixes the size of every tensor of a part."""
    names = [name for i in reading.nodes for name in view.nodes[i].output if name]
    return all(view.size(name) is not None for name in (reading.source, *names))


def _area(view: View, name: str, reading: Reading, *, fixed: bool) -> Fraction:
    """Pixels of an image, or for each one of the source."""
    size = view.size(name)
    if fixed and size is not None:
        return Fraction(prod(size))
    return Fraction(1, prod(reading.stride))


def _left(reader: LinearReader, reasons: Mapping[int, str], gone: set[int]) -> tuple[Left, ...]:
    """What is not merged, in the file's order: convolutions, and what else is done to images."""
    view = reader.view
    found = []
    for at in sorted(reader.linear):
        operator = view.operator(view.nodes[at])
        if operator != "Conv" and not _is_of_images(reader, at):
            continue
        if at in reasons:
            found.append(Left(view.label(at), reasons[at]))
        elif at not in gone and operator not in ("Conv", "Identity", "Dropout", "Cast"):
            found.append(Left(view.label(at), _alone(reader, at)))
    return tuple(found)


def _is_of_images(reader: LinearReader, at: int) -> bool:
    """Whether it makes numbers with four axes: sizes and indices are computed in graphs, too."""
    view = reader.view
    names = [name for name in view.nodes[at].output if name]
    if any(view.dtype(name) not in ("", *FLOATS, "bfloat16") for name in names):
        return False
    shapes = [view.shape(name) for name in names]
    return any(
        len(shape) == 4 if shape is not None else bool(reader.readings.get(name))
        for name, shape in zip(names, shapes, strict=True)
    )


def _alone(reader: LinearReader, at: int) -> str:
    """Why a linear node that nothing else is said of stays."""
    view = reader.view
    inputs = [name for name in view.nodes[at].input if name and view.constant(name) is None]
    makers = [view.makers.get(name) for name in inputs]
    said = ", ".join(
        f"{name} (an input of the graph)"
        if i is None
        else f"{view.nodes[i].op_type} {view.label(i)}"
        for name, i in zip(inputs, makers, strict=True)
    )
    return f"no convolution that could take it in stands before it: {said}"
