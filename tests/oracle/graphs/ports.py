"""Ports of a small PSPNet in float32, one node of which does something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.layers import Block, Pass
from repvgg_ref.models.network import Model
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import golden_inputs
from tests.models.segmenters import small_graph

MODEL = distinguishing_model(small_graph())
FUSED = rr.fuse(MODEL)
X = golden_inputs(MODEL.arch)
BLOCKS = [spec.name for spec in MODEL.arch.blocks]
BETWEEN = [n.name for n in MODEL.arch.evaluated if not isinstance(n.op, Block)]


def port(
    wrong: Mapping[str, Callable[[list[Array]], Array]], model: Model = FUSED, x: Array = X
) -> dict[str, Array]:
    """Layer outputs of a port whose nodes `wrong` compute something else of their inputs."""
    run = Pass(model.params, REFERENCE, model.eps, model.form)
    found: dict[str, Any] = {INPUT: x}
    for node in model.arch.evaluated:
        xs = [found[name] for name in node.inputs]
        try:
            own = wrong.get(node.name)
            y = own(xs) if own is not None else node.op.forward(node.name, xs, run)[0]
        except ShapeError:
            break  # what is behind a wrong size cannot be computed
        found[node.name] = np.asarray(y, np.float32)
    del found[INPUT]
    return found


def hiding(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Of a port that shows its blocks and its logits alone."""
    return {n: y for n, y in outputs.items() if n in BLOCKS or n == MODEL.arch.head.name}


RIGHT = port({})
