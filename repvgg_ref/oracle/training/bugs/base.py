"""What a training bug is: a named function from a right setup to wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

from repvgg_ref.models.graph import Graph, Node
from repvgg_ref.oracle.training.run import Setup


class Wrong(NamedTuple):
    """One setting of a bug."""

    setup: Setup
    detail: str = ""
    parameter: float | None = None


Mutation = Callable[[Setup], Iterator[Wrong]]


@dataclass(frozen=True)
class TrainingBug:
    """A bug class.

    Attributes
    ----------
    says : str
        A sentence about the port; ``{parameter}`` and ``{detail}`` are filled in.
    local : bool
        It can sit in one layer alone.
    first : bool
        It shows in the first step's numbers; otherwise in what comes after them only.
    """

    name: str
    says: str
    advice: str
    mutate: Mutation
    local: bool = False
    first: bool = True


_FAMILIES: dict[str, list[TrainingBug]] = {}


def training_bug(
    name: str,
    *,
    says: str,
    advice: str,
    local: bool = False,
    first: bool = True,
) -> Callable[[Mutation], Mutation]:
    """Register the decorated mutation under `name`, in the family of its module."""

    def register(mutate: Mutation) -> Mutation:
        family = _FAMILIES.setdefault(mutate.__module__, [])
        family.append(TrainingBug(name, says, advice, mutate, local, first))
        return mutate

    return register


def library(*modules: ModuleType) -> tuple[TrainingBug, ...]:
    """The bugs of some modules, in the order in which they stand there."""
    return tuple(bug for module in modules for bug in _FAMILIES[module.__name__])


def with_ops(setup: Setup, **changes: Any) -> Setup:
    """The setup with some operators exchanged."""
    return replace(setup, ops=replace(setup.ops, **changes))


def with_result(setup: Setup, operator: str, change: Callable[..., Any]) -> Setup:
    """The setup with `change` of what an operator gives; it gets the operator's arguments too."""
    right = getattr(setup.ops, operator)

    def changed(*args: Any, **how: Any) -> Any:
        return change(right(*args, **how), *args, **how)

    return with_ops(setup, **{operator: changed})


def with_nodes(setup: Setup, change: Callable[[Node], Node | None]) -> Setup:
    """The setup with every node of the network changed; None leaves it out."""
    changed = (change(node) for node in setup.network.nodes)
    nodes = tuple(node for node in changed if node is not None)
    return replace(setup, network=Graph(setup.network.name, nodes))


def with_recipe(setup: Setup, **changes: Any) -> Setup:
    """The setup with other settings in its recipe."""
    return replace(setup, recipe=replace(setup.recipe, **changes))
