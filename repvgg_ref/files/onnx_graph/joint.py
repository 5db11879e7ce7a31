"""A tensor that several parts read: all of them may take in what makes it, at once.

Each alone would compute it twice. Together they can do without it, at no more cost than before.
"""

from __future__ import annotations

from fractions import Fraction

from repvgg_ref.files.onnx_graph.chosen import Chosen
from repvgg_ref.files.onnx_graph.part import Part, area, built, is_fixed, within
from repvgg_ref.files.onnx_graph.reader import LinearReader
from repvgg_ref.files.onnx_graph.reading import UNFORESEEN, LeftError, Reading


def joined(reader: LinearReader, chosen: Chosen) -> bool:
    """Choose larger parts, where one tensor less is needed; whether there are any."""
    view, found = reader.view, False
    for at in range(len(view.nodes) - 1, -1, -1):
        for name in view.nodes[at].output:
            own, users = chosen.parts.get(name), _users(chosen, name)
            is_single = at not in chosen.gone and view.operator(view.nodes[at]) == "Conv"
            if not users or not (own or is_single):
                continue
            # what stands farther back is no more, or made by others
            source = own.reading.source if own else view.nodes[at].input[0]
            reading = within(reader, name, source)
            larger = reading and _larger(reader, reading, own.nodes if own else (at,), users)
            if larger:
                outputs = [part.output for part in larger] + ([name] if own else [])
                for part in [chosen.parts[each] for each in outputs if each in chosen.parts]:
                    chosen.remove(part)
                for part in larger:
                    chosen.add(part)
                found = True
    return found


# What ends a user of a tensor: its last node, what that makes, and the nodes that it is now.
_User = tuple[int, str, tuple[int, ...]]


def _users(chosen: Chosen, name: str) -> list[_User] | None:
    """The parts and single convolutions that read a tensor; None if anything else does."""
    view = chosen.view
    if name in view.outputs:
        return None
    users = [(p.node, p.output, p.nodes) for p in chosen.reading(name)]
    for i in view.readers[name]:
        node = view.nodes[i]
        if i in chosen.gone:  # a user's, or its part begins farther back
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
        except (LeftError, *UNFORESEEN):
            return None
        pixels = area(view, name, found, fixed=is_fixed(view, found))
        cost += (part.macs_after - part.macs_before) * pixels
        made.append(part)
    fixed = {is_fixed(view, part.reading) for part in made}
    return made if cost <= 0 and len(fixed) == 1 else None
