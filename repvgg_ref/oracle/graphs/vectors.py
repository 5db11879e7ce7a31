"""What golden vectors of a network that says a class for every pixel would notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import AdaptiveAvgPool
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import Block
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import Mutant, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.golden.arrays import float32_outputs
from repvgg_ref.oracle.golden.mutation import (
    MutationMatrix,
    Planted,
    PlantedLayer,
    swapped_sides,
)
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.programs.layers import Programs

Progress = Callable[[str, int, int], None]


def dense_matrix(model: Model, x: Array, *, progress: Progress | None = None) -> MutationMatrix:
    """Plant every known bug in every node, one at a time; certified bounds alone notice them.

    `x` is (N, in_channels, H, W); ``progress(node, done, total)``.
    """
    single = float32_outputs(model, x)
    port = GraphPort(Programs(model), single, x, PRECISIONS["fp32"])
    port.along()
    names, found = model.arch.layer_names, list[Planted]()
    for done, node in enumerate(model.arch.evaluated):
        judged, own = port.comparisons[node.name], port.known[node.name].y
        assert judged.bound is not None
        below, is_block = port.known[node.inputs[0]].y, isinstance(node.op, Block)
        site = replace(port.site(node), y_hat=np.roll(own, 1, axis=1))
        layer = PlantedLayer(model, site, judged.y, own, judged.bound, tests=0)
        mutants = planted(bugs_for(site.program), site, node.name)
        found += [layer.judged(mutant) for mutant in mutants if not _is_no_bug(mutant, node, port)]
        found += swapped_sides(below, node.name) if is_block else []
        if progress is not None:
            progress(node.name, done + 1, len(names))
    return MutationMatrix(names, tuple(found))


def _is_no_bug(mutant: Mutant[Any], node: Node, port: GraphPort) -> bool:
    """Whether the mutant is right on every image: a stride, where there is always one pixel."""
    source = next((n for n in port.model.arch.nodes if n.name == node.inputs[0]), None)
    is_one = source is not None and source.op == AdaptiveAvgPool(1)
    return is_one and mutant.bug.name == "stride-moved"
