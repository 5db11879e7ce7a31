"""Where a training that diverged went wrong: the first layer whose output is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array, array_module, to_numpy
from repvgg_ref.errors import ReportedError
from repvgg_ref.models.graph import Network, walk
from repvgg_ref.models.layers import Pass
from repvgg_ref.ops import Ops
from repvgg_ref.train.comm import Comm


class DivergenceError(ReportedError):
    """The loss, or a weight, is NaN or infinite."""


@np.errstate(over="ignore", invalid="ignore")  # these are what it looks for
def first_bad_layer(
    arch: Network,
    params: Mapping[str, Array],
    x: Array,
    *,
    ops: Ops,
    eps: float,
    comm: Comm,
) -> str | None:
    """The first layer, in network order and on any rank, that gives NaN or infinity for `x`.

    Batch norm takes the batch's statistics, as in the step that failed. A layer is named as in
    every report; "the input" if that is not finite itself.
    """
    run = Pass(params, ops, eps, training=True)
    names, bad = ["the input"], [not _finite(x)]
    for visit in walk(arch.evaluated, x, lambda node: run):
        names.append(visit.node.name)
        bad.append(not _finite(visit.y))
    xp = array_module(x)
    anywhere = to_numpy(comm.sum(xp.asarray(bad, dtype=next(iter(params.values())).dtype)))
    return next((name for name, count in zip(names, anywhere, strict=True) if count), None)


def _finite(x: Array) -> bool:
    return bool(array_module(x).isfinite(x).all())
