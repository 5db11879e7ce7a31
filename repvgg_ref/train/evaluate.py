"""How good a network is: loss, top-1 and top-5 of the trained and of the fused form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.selfcheck import BlockCheck, SelfCheckError
from repvgg_ref.data.loader import Batch
from repvgg_ref.data.source import DataError
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.ops import Ops
from repvgg_ref.train.accuracy import hits
from repvgg_ref.train.agreement import check_agreement
from repvgg_ref.train.comm import Comm

_PROOF_IMAGES = 4


class Score(NamedTuple):
    """Means over `images`; `top1` and `top5` are parts of 1."""

    loss: float
    top1: float
    top5: float


class Evaluation(NamedTuple):
    """Both forms on one data set, and how far apart they were.

    Attributes
    ----------
    difference, tolerance : float
        Largest difference of a logit between the forms, and what rounding explains.
    closest : BlockCheck
        The block that used most of its certified bound.
    """

    images: int
    trained: Score
    fused: Score
    difference: float
    tolerance: float
    closest: BlockCheck


@np.errstate(over="ignore", invalid="ignore")  # a NaN fails the comparison of the two forms
def evaluate(
    trained: Model,
    batches: Iterable[Batch],
    inputs: Callable[[Batch], Array],
    *,
    ops: Ops,
    comm: Comm,
    roundoff: float,
) -> Evaluation:
    """Evaluate `trained` and its fused form on this rank's batches, and prove that they agree.

    Parameters
    ----------
    trained : Model
        In train form.
    inputs : callable
        Batch -> the network's input on the device.

    Raises
    ------
    SelfCheckError
        If the two forms differ by more than rounding explains.
    DataError
        If this rank has no image.
    """
    params = {name: to_numpy(array) for name, array in trained.params.items()}
    trained = Model(trained.arch, trained.form, params, trained.eps, trained.momentum)
    fused = fuse(trained)
    sums = np.zeros(7)
    difference, agreement = 0.0, None
    for batch in batches:
        if not len(batch.labels):  # the last batch may have fewer images than there are ranks
            continue
        x = inputs(batch)
        if agreement is None:
            agreement = check_agreement(
                trained,
                fused,
                to_numpy(x[:_PROOF_IMAGES]),
                ops=backend_ops("numpy", np.float64),
                roundoff=roundoff,
            )
        first, second = (to_numpy(logits(model, x, ops)) for model in (trained, fused))
        difference = np.maximum(difference, np.abs(first - second).max())  # keeps a NaN
        sums += (len(x), *_sums(first, batch.labels), *_sums(second, batch.labels))
        if not difference <= agreement.tolerance:
            raise SelfCheckError(
                "the trained and the fused form give different logits",
                got=f"{difference:.3g}",
                wanted=f"at most {agreement.tolerance:.3g}, which rounding explains",
                advice="this is a bug in repvgg-ref: please report it",
            )
    if agreement is None:
        raise DataError("there is no image to evaluate on")
    images, *rest = to_numpy(comm.sum(ops.from_host(sums))).tolist()
    means = [value / images for value in rest]
    return Evaluation(
        int(images),
        Score(*means[:3]),
        Score(*means[3:]),
        float(difference),
        agreement.tolerance,
        agreement.block,
    )


def logits(model: Model, x: Array, ops: Ops) -> Array:
    """What `model` says of device arrays, by the fastest evaluation there is."""
    return model.forward(x, backend=ops)


def _sums(logits: Array, labels: Array) -> tuple[float, int, int]:
    """Summed loss, images whose class came first, and among the first five."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    own = wide[np.arange(len(labels)), labels]
    loss = float((np.log(np.exp(wide).sum(axis=1)) - own).sum())
    _, top1, top5 = hits(logits, labels)
    return loss, top1, top5
