"""Which linear parts of a graph become one convolution each, and why the others do not.

From the graph's end to its beginning every tensor is read from as far back as one convolution
equals what is between, and computes no more than the nodes that go for it. What else reads a tensor
in between keeps the nodes that make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from repvgg_ref.files.onnx_graph.chosen import Chosen
from repvgg_ref.files.onnx_graph.joint import joined
from repvgg_ref.files.onnx_graph.part import Part, built
from repvgg_ref.files.onnx_graph.reader import LinearReader
from repvgg_ref.files.onnx_graph.reading import UNFORESEEN, LeftError, Reading, unforeseen
from repvgg_ref.files.onnx_graph.view import FLOATS, View


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
    """Choose the parts: again and again, since what one leaves unread another can take in."""
    chosen, reasons = Chosen(reader.view), dict[int, str]()
    while _swept(reader, chosen, reasons) or joined(reader, chosen):
        pass
    parts = sorted(chosen.parts.values(), key=lambda part: part.node)
    for part in parts:
        if part.reading.source == reader.readings[part.output][0].source:  # there is no larger
            reasons.pop(part.node, None)
    for at, why in reader.reasons.items():
        reasons[at] = f"{why}; {reasons[at]}" if at in reasons else why
    return Plan(tuple(parts), _left(reader, reasons, chosen.gone))


def _swept(reader: LinearReader, chosen: Chosen, reasons: dict[int, str]) -> bool:
    """From the graph's end to its beginning, the best part of every tensor; whether there are any.

    `reasons` gets why the farthest reading of a node is none.
    """
    view, found = reader.view, False
    for at in range(len(view.nodes) - 1, -1, -1):
        for name in view.nodes[at].output:
            if at in chosen.gone:
                break
            part, why = _best(reader, at, name, chosen)
            if why is not None:
                reasons[at] = why
            if part is not None:
                chosen.add(part)
                found = True
    return found


def _best(
    reader: LinearReader, at: int, name: str, chosen: Chosen
) -> tuple[Part | None, str | None]:
    """The part that ends in a tensor and saves most convolutions, then most multiply-accumulates.

    With it, why the farthest reading is no part.
    """
    view = reader.view
    found: list[Part] = []
    first: str | None = None
    for reading in reader.readings.get(name, []):
        convs = [i for i in reading.nodes if view.operator(view.nodes[i]) == "Conv"]
        if not convs or len(reading.nodes) == 1 or not chosen.is_there(reading.source):
            continue
        try:
            found.append(_part(reader, at, name, reading, chosen))
        except LeftError as why:
            if not found:
                first = first or str(why)
        except UNFORESEEN as error:
            if not found:
                first = first or unforeseen(error)
    return max(found, key=lambda part: _gain(view, part), default=None), first


def _gain(view: View, part: Part) -> tuple[int, Fraction, int]:
    convs = sum(view.operator(view.nodes[i]) == "Conv" for i in part.nodes)
    return convs, part.macs_before - part.macs_after, len(part.nodes)


def _part(reader: LinearReader, at: int, name: str, reading: Reading, chosen: Chosen) -> Part:
    """The part, or `LeftError`."""
    view = reader.view
    dead = _dead(view, at, reading, chosen)
    kept = [i for i in reading.nodes - set(dead) if view.operator(view.nodes[i]) == "Conv"]
    if len(dead) < 2 or not any(view.operator(view.nodes[i]) == "Conv" for i in dead):
        raise LeftError(_shared(view, kept or sorted(reading.nodes - set(dead)), chosen))
    part = built(reader, at, name, reading, dead)
    if part.macs_after > part.macs_before:
        there = f"; {_shared(view, kept, chosen)}" if kept else ""
        raise LeftError(
            f"one convolution from {reading.source} would take {float(part.macs_after):.6g} "
            f"multiply-accumulates a pixel in place of {float(part.macs_before):.6g}{there}"
        )
    return part


def _dead(view: View, at: int, reading: Reading, chosen: Chosen) -> list[int]:
    """The nodes that nobody needs once the part is one convolution."""
    dead = {at}
    for i in sorted(reading.nodes - {at} - chosen.gone, reverse=True):
        names = [name for name in view.nodes[i].output if name]
        readers = {r for name in names for r in view.readers[name]}
        unread = all(r in dead or r in chosen.gone for r in readers)
        if unread and not any(map(chosen.is_needed, names)):
            dead.add(i)
    return sorted(dead)


def _shared(view: View, kept: list[int], chosen: Chosen) -> str:
    """Why nodes must stay."""
    for i in kept:
        for name in view.nodes[i].output:
            if name in view.outputs:
                return f"{name} is an output of the graph, and would be computed twice"
            others = [view.label(r) for r in view.readers[name] if r not in chosen.gone]
            if len(others) > 1:
                return f"{name} is read by {', '.join(others)}, and would be computed twice"
    return "what it reads is needed elsewhere, and would be computed twice"


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
