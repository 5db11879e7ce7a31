"""Reads a graph, producers first: from where each tensor is linear, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Scale, Slice
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.onnx_graph.reading import UNFORESEEN, LeftError, Reading, stacked, summed
from repvgg_ref.files.onnx_graph.view import FLOATS, View

Step = Callable[[Reading], Reading]
Rule = Callable[["LinearReader", int], None]
# Places that a tensor is read from: the farthest and the nearest are kept.
_FARTHEST, _NEAREST = 8, 4
_MINUS = "-1"


class LinearReader:
    """See the module.

    Attributes
    ----------
    readings : dict of tensor -> list of Reading
        From other tensors, the farthest first; the tensor itself is not among them.
    reasons : dict of node -> str
        Why a node is not linear, or does not go on from what its input is made of.
    arrays : dict of str -> array
        What the leaves of all expressions hold.
    """

    minus = Scale(_MINUS, ())

    def __init__(self, view: View, rules: Mapping[str, Rule]):
        self.view = view
        self.readings: dict[str, list[Reading]] = {}
        self.reasons: dict[int, str] = {}
        self.arrays: dict[str, Array] = {_MINUS: np.full((), -1.0)}
        self.linear: set[int] = set()
        for at, node in enumerate(view.nodes):
            meant = rules.get(view.operator(node))
            if meant is None or all(view.constant(name) is not None for name in node.output):
                continue
            self.linear.add(at)
            try:
                meant(self, at)
            except LeftError as why:
                self.reasons[at] = str(why)
            except ReportedError as error:  # the algebra's own refusal
                self.reasons[at] = str(error)
            except UNFORESEEN:
                self.reasons[at] = "it is not as ONNX wants it"  # what the checker let through

    def from_everywhere(self, name: str) -> list[Reading]:
        """All readings of a tensor, itself as the last."""
        return [*self.readings.get(name, []), Reading(name, channels=self.view.channels(name))]

    def channels(self, name: str) -> int | None:
        """How many channels a tensor has, as far as that is known."""
        found = self.view.channels(name)
        if found is None:
            found = next((r.channels for r in self.readings.get(name, [])), None)
        return found

    def keep(self, name: str, array: Array | None) -> None:
        """Note what a leaf holds."""
        assert array is not None
        self.arrays[name] = array

    def require_float(self, dtype: str) -> None:
        """Leave what is of a type that nothing is rounded to here."""
        if dtype not in FLOATS:
            raise LeftError(f"its type is {dtype or 'not known'}, not one of {', '.join(FLOATS)}")

    def require_channels(self, name: str, count: int) -> None:
        """Leave a node whose numbers are not one a channel."""
        if (found := self.channels(name)) not in (None, count):
            raise LeftError(f"it has {count} numbers for {found} channels")

    def through(self, at: int, part: Any, *, sized: bool = False) -> Step:
        """The step through a convolution."""

        def step(reading: Reading) -> Reading:
            after = reading.through(part, at, self.arrays, 0.0)
            return after.sized() if sized else after

        return step

    def slice(self, at: int, x: str, y: str, channels: int, start: int, stop: int) -> None:
        """Some channels of `x` are `y`."""
        self.follow(at, x, self.through(at, Slice(channels, start, stop)), output=y)

    def follow(self, at: int, x: str, step: Step, *, output: str | None = None) -> None:
        """The readings of a node of one input: each of the input's, and the step.

        Why the farthest cannot be followed is the reason that is kept.
        """
        found, refused = [], None
        for reading in self.from_everywhere(x):
            try:
                found.append(step(reading))
            except (LeftError, ReportedError) as why:
                if refused is None and not found:
                    refused = str(why)
        if refused is not None:
            self.reasons[at] = refused
        self._enter(output or self.view.nodes[at].output[0], found)

    def combine(self, at: int, terms: Sequence[tuple[str, int]], *, stack: bool = False) -> None:
        """The readings of a sum, or of channels one behind the other, from all common places."""
        tables = [
            {reading.source: reading for reading in self.from_everywhere(x)} for x, _ in terms
        ]
        common = [source for source in tables[0] if all(source in each for each in tables[1:])]
        if not common:
            firsts = [(x, next(iter(table))) for (x, _), table in zip(terms, tables, strict=True)]
            places = [x if x == source else f"{x} from {source}" for x, source in firsts]
            raise LeftError(f"its inputs come from different places: {', '.join(places)}")
        same_size = self._same_size([x for x, _ in terms])
        found, refused = [], None
        for source in sorted(common, key=self._age):
            readings = [table[source] for table in tables]
            try:
                readings = [
                    each.then(self.minus, at) if sign < 0 else each
                    for each, (_, sign) in zip(readings, terms, strict=True)
                ]
                found.append(
                    stacked(readings, at) if stack else summed(readings, at, same_size=same_size)
                )
            except (LeftError, ReportedError) as why:
                if refused is None and not found:
                    refused = str(why)
        if refused is not None:
            self.reasons[at] = refused
        self._enter(self.view.nodes[at].output[0], found)

    def _enter(self, name: str, found: list[Reading]) -> None:
        found.sort(key=lambda reading: self._age(reading.source))
        del found[_FARTHEST:-_NEAREST]
        self.readings[name] = found

    def _age(self, name: str) -> int:
        return self.view.makers.get(name, -1)

    def _same_size(self, names: Sequence[str]) -> bool:
        sizes = {self.view.size(name) for name in names}
        return len(sizes) == 1 and None not in sizes
