"""The parts of a graph that are chosen so far, and what follows from them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from repvgg_ref.files.onnx_graph.part import Part
from repvgg_ref.files.onnx_graph.view import View


class Chosen:
    """See the module.

    Attributes
    ----------
    parts : dict of tensor -> Part
        By what they make; no node is in two of them.
    gone : set of int
        The nodes that they replace.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.parts: dict[str, Part] = {}
        self.gone: set[int] = set()
        self._readers: dict[str, set[str]] = defaultdict(set)

    def add(self, part: Part) -> None:
        """One more; a part that nothing reads any more then gives it its nodes."""
        idle = self._idle(part)
        while idle is not None:
            self.remove(idle)
            part = replace(part, nodes=tuple(sorted((*part.nodes, *idle.nodes))))
            idle = self._idle(part)
        self.parts[part.output] = part
        self.gone.update(part.nodes)
        self._readers[part.reading.source].add(part.output)

    def remove(self, part: Part) -> None:
        """One less."""
        del self.parts[part.output]
        self.gone.difference_update(part.nodes)
        self._readers[part.reading.source].discard(part.output)

    def is_needed(self, name: str) -> bool:
        """Whether a tensor must be there: an output, or what a part is read from."""
        return name in self.view.outputs or bool(self._readers[name])

    def is_there(self, name: str) -> bool:
        """Whether a part can be read from a tensor: its node is there, or a part makes it."""
        return self.view.makers.get(name) not in self.gone or name in self.parts

    def reading(self, name: str) -> list[Part]:
        """The parts that are read from a tensor."""
        return [self.parts[output] for output in sorted(self._readers[name])]

    def _idle(self, part: Part) -> Part | None:
        """A part whose tensor only nodes read that are gone when `part` is there, too."""
        own = set(part.nodes)
        for name in (name for i in part.nodes for name in self.view.nodes[i].input):
            found = self.parts.get(name)
            if found is None or name == part.reading.source or self.is_needed(name):
                continue
            if all(i in own or i in self.gone for i in self.view.readers[name]):
                return found
        return None
