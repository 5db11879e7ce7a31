"""Setups with another network, operators or recipe: what training bugs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import IGNORED
from repvgg_ref.models.graph import Graph, Node
from repvgg_ref.oracle.bugs.base import Site, Variant
from repvgg_ref.oracle.training.run import Setup

TrainingSite = Site[Setup]
TrainingVariants = Iterator[Variant[Setup]]


def with_ops(setup: Setup, **changes: Any) -> Setup:
    """The setup with some operators exchanged."""
    return replace(setup, ops=replace(setup.ops, **changes))


def with_result(setup: Setup, operator: str, change: Callable[..., Any]) -> Setup:
    """The setup with `change` of what an operator gives; it gets the operator's arguments too."""
    right = getattr(setup.ops, operator)

    def changed(*args: Any, **how: Any) -> Any:
        return change(right(*args, **how), *args, **how)

    return with_ops(setup, **{operator: changed})


def with_loss(
    setup: Setup, value: Callable[[Array], Array], gradient: Callable[[Array], Array]
) -> Setup:
    """The setup with changes of the losses and of their gradients with respect to logits."""
    kind = "pixel" if setup.recipe.pixels else "softmax"
    changed = with_result(
        setup, f"{kind}_cross_entropy_forward", lambda found, *_, **__: (value(found[0]), found[1])
    )
    return with_result(changed, f"{kind}_cross_entropy_backward", lambda found, _: gradient(found))


def averaged_over(setup: Setup) -> float:
    """What the loss is a mean over: images, or pixels that count."""
    labels = setup.labels
    return float((labels != IGNORED).sum()) if setup.recipe.pixels else float(len(labels))


def with_nodes(setup: Setup, change: Callable[[Node], Node | None]) -> Setup:
    """The setup with every node of the network changed; None leaves it out."""
    changed = (change(node) for node in setup.network.nodes)
    nodes = tuple(node for node in changed if node is not None)
    network = setup.network
    if isinstance(network, Graph):
        return replace(setup, network=replace(network, nodes=nodes))
    return replace(setup, network=Graph(network.name, nodes))


def with_recipe(setup: Setup, **changes: Any) -> Setup:
    """The setup with other settings in its recipe."""
    return replace(setup, recipe=replace(setup.recipe, **changes))
