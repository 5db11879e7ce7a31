"""The oracle's rooms: who may import whom, no circle, and nothing from the engines it judges."""

from __future__ import annotations

from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.test_architecture import SOURCES, imports, is_in, module_name

ORACLE = "repvgg_ref.oracle"
MODULES = {module_name(path): path for path in SOURCES if is_in(module_name(path), ORACLE)}

# Each room may import those before it; `report` and `blas` are everybody's.
ROOMS = (
    "programs",
    "bounds",
    "bugs",
    "arithmetic",
    "estimates",
    "candidates",
    "weights",
    "symmetry",
    "diagnosis",
    "families",
    "training",
    "golden",
    "probes",
)


@cache
def read_by(module: str) -> frozenset[str]:
    """The oracle's modules that one of them imports, lazily or not."""
    return frozenset(n for n in imports(MODULES[module]) if n in MODULES) - {module}


def test_there_is_no_circle() -> None:
    list(TopologicalSorter({module: read_by(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_reaches_up(room: str) -> None:
    above = [*ROOMS[ROOMS.index(room) + 1 :], "verification", "render"]
    reached = {
        (module, name)
        for module in MODULES
        if is_in(module, f"{ORACLE}.{room}")
        for name in read_by(module)
        if any(is_in(name, f"{ORACLE}.{other}") for other in above)
    }
    assert not reached


def test_the_judge_takes_nothing_from_the_engines_it_judges() -> None:
    engines = ("repvgg_ref.cpu", "repvgg_ref.gpu", "repvgg_ref.bench")
    taken = {
        (module, name)
        for module, path in MODULES.items()
        for name in imports(path)
        if any(is_in(name, engine) for engine in engines)
    }
    assert not taken
