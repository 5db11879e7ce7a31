"""Batch norm with the batch's statistics, NHWC, as the sum of one branch that is given."""

from __future__ import annotations

from typing import NamedTuple

from repvgg_ref.arrays import Array, Real
from repvgg_ref.cpu.training.branches import BranchesCache, branches_backward, branches_forward
from repvgg_ref.cpu.training.convolutions import Geometry
from repvgg_ref.cpu.training.parts import Branch
from repvgg_ref.ops import REFERENCE, BatchNormGrads

_NAME = "x"


class BatchNormCache(NamedTuple):
    """What `batch_norm_train_backward` needs, and the batch's statistics, (C,)."""

    summed: BranchesCache
    mean: Array
    var: Array


def batch_norm_train_forward(
    x: Array, gamma: Array, beta: Array, *, eps: Real
) -> tuple[Array, BatchNormCache]:
    """`ops.batch_norm.batch_norm_train_forward` for x (N, H, W, C)."""
    if x.ndim != 4 or x.size == 0 or {gamma.shape, beta.shape} != {x.shape[3:]}:
        REFERENCE.batch_norm_train_forward(x.transpose(0, 3, 1, 2), gamma, beta, eps=eps)  # refuses
    branch = Branch(None, gamma, beta, x)
    y, cache, stats = branches_forward(None, {_NAME: branch}, Geometry(), eps=eps, relu=False)
    return y, BatchNormCache(cache, stats[_NAME].mean, stats[_NAME].var)


def batch_norm_train_backward(grad_y: Array, cache: BatchNormCache) -> BatchNormGrads:
    """`ops.batch_norm.batch_norm_train_backward` for grad_y (N, H, W, C)."""
    found = branches_backward(grad_y, cache.summed)[1][_NAME]
    assert found.output is not None
    assert found.gamma is not None
    assert found.beta is not None
    return BatchNormGrads(found.output, found.gamma, found.beta)
