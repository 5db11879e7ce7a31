"""A table that offers whole blocks gives what the primitives give, whatever follows the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.recognise import three_branch_passes
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import (
    REFERENCE,
    BranchArrays,
    BranchesForward,
    BranchGrads,
    Ops,
)
from tests.models.small import SMALL, batch, distinct_model


def forward(
    x: Array,
    branches: Mapping[str, BranchArrays],
    /,
    *,
    stride: int,
    dilation: int,
    groups: int,
    eps: Any,
    relu: bool,
) -> BranchesForward:
    """The three branches in a few lines of the reference's operators."""
    total: Array = np.zeros(())
    caches, stats = {}, {}
    for name, (weight, gamma, beta) in branches.items():
        z, conv = x, None
        if weight is not None:
            padding = weight.shape[-1] // 2 * dilation
            geometry = {"stride": stride, "dilation": dilation, "groups": groups}
            z, conv = REFERENCE.conv2d_forward(x, weight, None, padding=padding, **geometry)
        y, bn_cache = z, None
        if gamma is not None:  # else there is no norm
            y, bn_cache = REFERENCE.batch_norm_train_forward(z, gamma, beta, eps=eps)
            stats[name] = bn_cache
        caches[name] = conv, bn_cache
        total = total + y
    return BranchesForward(np.maximum(total, 0) if relu else total, (caches, total, relu), stats)


def backward(grad: Array, cache: Any) -> tuple[Array, dict[str, BranchGrads]]:
    caches, total, relu = cache
    grad = grad * (total > 0) if relu else grad
    grad_x, grads = np.zeros(()), {}
    for name, (conv, bn_cache) in caches.items():
        bn: Any = grad, None, None
        if bn_cache is not None:
            bn = REFERENCE.batch_norm_train_backward(grad, bn_cache)
        through, grad_gamma, grad_beta = bn
        weight = None
        if conv is not None:
            through, weight, _ = REFERENCE.conv2d_backward(through, conv)
        grads[name] = BranchGrads(weight, grad_gamma, grad_beta)
        grad_x = grad_x + through
    return grad_x, grads


def parameter_grads(grad: Array, cache: Any) -> dict[str, BranchGrads]:
    return backward(grad, cache)[1]


FUSED = replace(REFERENCE, recognise_block=three_branch_passes(forward, backward, parameter_grads))


def step(model: Model, ops: Ops, x: Array, labels: Array) -> StepResult:
    settings: dict[str, Any] = {"eps": 1e-5, "momentum": 0.1, "label_smoothing": 0.1}
    return training_step(model.arch, model.params, x, labels, ops=ops, **settings)


@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())
def test_whole_blocks_equal_their_primitives(arch: Network) -> None:
    model = distinct_model(arch)
    x, labels = batch(arch, count=3)
    got, want = step(model, FUSED, x, labels), step(model, REFERENCE, x, labels)
    assert got.loss == pytest.approx(want.loss, rel=1e-13)
    assert set(got.grads) == set(want.grads)
    assert set(got.stats) == set(want.stats)
    for name, grad in want.grads.items():
        np.testing.assert_allclose(
            got.grads[name], grad, rtol=1e-9, atol=1e-12 * abs(grad).max(), equal_nan=False
        )
    for name, stat in want.stats.items():
        np.testing.assert_allclose(got.stats[name], stat, rtol=1e-12, equal_nan=False)
