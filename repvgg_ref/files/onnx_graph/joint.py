"""A tensor that several parts read: all of them may take in what makes it, at once.

Each alone would compute it twice. Together they can do without it, at no more cost than before.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from repvgg_ref.files.onnx_graph.part import Part, area, built, is_fixed, within
from repvgg_ref.files.onnx_graph.reader import LinearReader
from repvgg_ref.files.onnx_graph.reading import LeftError, Reading
from repvgg_ref.files.onnx_graph.view import View


def joined(reader: LinearReader, parts: list[Part]) -> bool:
    """Put larger parts into `parts`, where one tensor less is needed; whether there are any."""
    view, found = reader.view, False
    for at in range(len(view.nodes) - 1, -1, -1):
        for name in view.nodes[at].output:
            users = _users(view, parts, name)
            if not users:
                continue
            own = next((part for part in parts if part.output == name), None)
            if own is None and (at in _gone(parts) or view.operator(view.nodes[at]) != "Conv"):
                continue
            made = (own.nodes if own else (at,), users)
            for reading in reader.readings.get(name, []):
                if reading.source != (own.reading.source if own else view.nodes[at].input[0]):
                    continue  # what stands there is no more, or made by others
                larger = _larger(reader, reading, *made)
                if larger is not None:
                    old = {own.output if own else "", *(part.output for part in larger)}
                    parts[:] = [part for part in parts if part.output not in old] + larger
                    found = True
                    break
    return found


# What ends a user of a tensor: its last node, what that makes, and the nodes that it is now.
_User = tuple[int, str, tuple[int, ...]]


def _users(view: View, parts: Iterable[Part], name: str) -> list[_User] | None:
    """The parts and single convolutions that read a tensor; None if anything else does."""
    if name in view.outputs:
        return None
    parts = list(parts)
    gone = _gone(parts)
    users = [(p.node, p.output, p.nodes) for p in parts if p.reading.source == name]
    seen = {i for *_, nodes in users for i in nodes}
    for i in view.readers[name]:
        node = view.nodes[i]
        if i in seen or i in gone:  # gone: its part begins farther back
            continue
        if view.operator(node) != "Conv" or list(node.input).count(name) != 1:
            return None
        users.append((i, node.output[0], (i,)))
    return users


def _larger(
    reader: LinearReader, reading: Reading, nodes: tuple[int, ...], users: list[_User]
) -> list[Part] | None:
    """A part for each user, from where `reading` starts; None if that is not exact, or costs more.

    The first of them takes `nodes`, which make the tensor, with it.
    """
    view, made, cost = reader.view, list[Part](), Fraction(0)
    for at, name, own in users:
        found = within(reader, name, reading.source)
        if found is None:
            return None
        taken = own if made else (*nodes, *own)
        try:
            part = built(reader, at, name, found, taken)
        except LeftError:
            return None
        pixels = area(view, name, found, fixed=is_fixed(view, found))
        cost += (part.macs_after - part.macs_before) * pixels
        made.append(part)
    fixed = {is_fixed(view, part.reading) for part in made}
    return made if cost <= 0 and len(fixed) == 1 else None


def _gone(parts: Iterable[Part]) -> set[int]:
    return {i for part in parts for i in part.nodes}
