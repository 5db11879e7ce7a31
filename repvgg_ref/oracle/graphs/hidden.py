"""Bugs of what a candidate leaves out, by what they make of the next output that it shows.

Each is tried in each hidden place, and in all places of one operation at once: a port that never
aligns corners resizes every floor of the pyramid so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.graph import Node
from repvgg_ref.oracle.bugs import NODE_BUGS, Mutant
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT
from repvgg_ref.oracle.graphs.port import GraphPort

Seen = tuple[Mutant[Any], Array]


def seen_through(port: GraphPort, places: Sequence[Node], target: Node) -> Iterator[Seen]:
    """Every bug of `places`, in one of them or in all that can have it, and what `target` gives.

    The places are hidden before `target`, or `target` itself.
    """
    found = {place.name: _mutants(port, place, target) for place in places}
    for name, mutants in found.items():
        for mutant in mutants:
            yield from _given(port, target, {name: mutant}, mutant)
    for together in _everywhere(port, found):
        yield from _given(port, target, together, in_all(together))


def in_all(alike: Mapping[str, Mutant[Any]]) -> Mutant[Any]:
    """The same bug in several layers, as one that stands in the first."""
    first, *others = alike
    where = f" (also in {listed(others)})"
    return replace(alike[first], where=where, also=tuple(others))


def _mutants(port: GraphPort, place: Node, target: Node) -> list[Mutant[Any]]:
    site = port.whole(place, port.masked(place, target))
    return list(planted(NODE_BUGS, site, place.name))


def _everywhere(
    port: GraphPort, found: Mapping[str, list[Mutant[Any]]]
) -> Iterator[dict[str, Mutant[Any]]]:
    """The same bug in the same words: in all nodes of an operation, and of any; more than one."""
    alike: dict[tuple[object, ...], dict[str, Mutant[Any]]] = {}
    for node in port.model.arch.evaluated:
        for mutant in found.get(node.name, ()):
            for kind in (type(node.op), None):
                alike.setdefault((kind, mutant.bug.name, mutant.says), {})[node.name] = mutant
    told = set[frozenset[tuple[str, int]]]()
    for together in alike.values():
        key = frozenset((name, id(mutant)) for name, mutant in together.items())
        if len(together) > 1 and key not in told:
            told.add(key)
            yield together


def _given(
    port: GraphPort, target: Node, planted_in: Mapping[str, Mutant[Any]], said: Mutant[Any]
) -> Iterator[Seen]:
    changes = {name: _change(mutant) for name, mutant in planted_in.items()}
    try:
        y = port.rerouted(changes, target)
    except (*DO_NOT_FIT, ShapeError):
        return
    if y is not None:
        yield said, y


def _change(mutant: Mutant[Any]) -> Callable[[list[Array]], Array]:
    program = mutant.variant.program
    return lambda xs: np.asarray(replace(program, xs=tuple(xs)).y)
