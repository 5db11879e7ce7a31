"""Gradients of batch norm, branches and ReLU that are missing or taken of the wrong thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import BlockCache, BlockGrads, branch_names
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import Ops
from repvgg_ref.ops.batch_norm import BatchNormGrads
from repvgg_ref.oracle.training.bugs.base import TrainingBug, Wrong, training_bug, with_ops
from repvgg_ref.oracle.training.run import Backward, Setup

LIBRARY: list[TrainingBug] = []


# ------------------------------------------------------------------ batch norm


def _bn(setup: Setup, change: Callable[[BatchNormGrads, Array, Any], BatchNormGrads]) -> Setup:
    """The setup with `change` of batch norm's gradients; it gets grad_y and the cache too."""
    right = setup.ops.batch_norm_train_backward

    def backward(grad_y: Array, cache: Any) -> BatchNormGrads:
        return change(right(grad_y, cache), grad_y, cache)

    return with_ops(setup, batch_norm_train_backward=backward)


def _through_mean(grad_y: Array, cache: Any) -> Array:
    """What batch norm's gradient subtracts for the mean, (N, C, H, W)."""
    slope = cache.gamma * cache.inv_std
    return np.asarray((slope * grad_y.mean(axis=(0, 2, 3)))[:, None, None])


def _through_var(grad_y: Array, cache: Any) -> Array:
    """What it subtracts for the variance."""
    slope = cache.gamma * cache.inv_std
    share = (grad_y * cache.x_hat).mean(axis=(0, 2, 3))
    return np.asarray((slope * share)[:, None, None] * cache.x_hat)


@training_bug(
    LIBRARY,
    "bn-backward-constant-statistics",
    says="batch norm's backward pass holds the batch's mean and variance constant",
    advice="grad_x = gamma * inv_std * (grad_y - mean(grad_y) - x_hat * mean(grad_y * x_hat))",
    local=True,
)
def _bn_backward_constant_statistics(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(
        _bn(
            setup,
            lambda g, dy, c: g._replace(
                grad_x=g.grad_x + _through_mean(dy, c) + _through_var(dy, c)
            ),
        )
    )


@training_bug(
    LIBRARY,
    "bn-backward-without-mean-term",
    says="batch norm's backward pass leaves out the gradient through the batch's mean",
    advice="subtract mean(grad_y) over N, H, W",
    local=True,
)
def _bn_backward_without_mean_term(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_bn(setup, lambda g, dy, c: g._replace(grad_x=g.grad_x + _through_mean(dy, c))))


@training_bug(
    LIBRARY,
    "bn-backward-without-variance-term",
    says="batch norm's backward pass leaves out the gradient through the batch's variance",
    advice="subtract x_hat * mean(grad_y * x_hat)",
    local=True,
)
def _bn_backward_without_variance_term(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_bn(setup, lambda g, dy, c: g._replace(grad_x=g.grad_x + _through_var(dy, c))))


@training_bug(
    LIBRARY,
    "bn-backward-without-scale",
    says="batch norm's input gradient is not multiplied by {detail}",
    advice="the input gradient carries the factor gamma / sqrt(var + eps)",
    local=True,
)
def _bn_backward_without_scale(setup: Setup) -> Iterator[Wrong]:
    def without(factor: str) -> Setup:
        return _bn(
            setup,
            lambda g, _, c: g._replace(grad_x=g.grad_x / getattr(c, factor)[:, None, None]),
        )

    yield Wrong(without("gamma"), "gamma")
    yield Wrong(without("inv_std"), "1 / sqrt(var + eps)")


@training_bug(
    LIBRARY,
    "gamma-beta-gradients-swapped",
    says="the gradients of gamma and beta are exchanged",
    advice="grad_gamma = sum(grad_y * x_hat), grad_beta = sum(grad_y)",
    local=True,
)
def _gamma_beta_gradients_swapped(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_bn(setup, lambda g, *_: BatchNormGrads(g.grad_x, g.grad_beta, g.grad_gamma)))


@training_bug(
    LIBRARY,
    "gamma-gradient-of-unnormalised-input",
    says="gamma's gradient uses {detail} where the normalised input belongs",
    advice="grad_gamma = sum(grad_y * x_hat), x_hat = (x - mean) / sqrt(var + eps)",
    local=True,
)
def _gamma_gradient_of_unnormalised_input(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(
        _bn(setup, lambda g, _, c: g._replace(grad_gamma=g.grad_gamma / c.inv_std)), "x - mean"
    )
    yield Wrong(
        _bn(
            setup,
            lambda g, _, c: g._replace(grad_gamma=g.grad_gamma / c.inv_std + c.mean * g.grad_beta),
        ),
        "x itself",
    )


@training_bug(
    LIBRARY,
    "bn-parameter-gradients-averaged",
    says="gamma's and beta's gradients are means over the pixels instead of sums",
    advice="sum over N, H and W",
    local=True,
)
def _bn_parameter_gradients_averaged(setup: Setup) -> Iterator[Wrong]:
    def averaged(g: BatchNormGrads, grad_y: Array, _: Any) -> BatchNormGrads:
        count = grad_y.size / grad_y.shape[1]
        return BatchNormGrads(g.grad_x, g.grad_gamma / count, g.grad_beta / count)

    yield Wrong(_bn(setup, averaged))


# -------------------------------------------------------------------- branches


def _backward(setup: Setup, change: Backward) -> Setup:
    return replace(setup, backward=change)


@training_bug(
    LIBRARY,
    "identity-gradient-missing",
    says="the identity branch sends no gradient to the block's input",
    advice="add the identity branch's input gradient to those of the other branches",
    local=True,
)
def _identity_gradient_missing(setup: Setup) -> Iterator[Wrong]:
    if any(spec.has_identity for spec in setup.arch.blocks):
        yield Wrong(_backward(setup, _without_input_gradient(setup.backward, "branch_identity")))


@training_bug(
    LIBRARY,
    "branch-1x1-gradient-missing",
    says="the 1x1 branch sends no gradient to the block's input",
    advice="add the 1x1 branch's input gradient to those of the other branches",
    local=True,
)
def _branch_1x1_gradient_missing(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_backward(setup, _without_input_gradient(setup.backward, "branch_1x1")))


@training_bug(
    LIBRARY,
    "branch-not-trained",
    says="the arrays of {detail} get no gradient (all are zero)",
    advice="check that the branch is part of the graph and that its parameters are registered",
    local=True,
)
def _branch_not_trained(setup: Setup) -> Iterator[Wrong]:
    present = {name for spec in setup.arch.blocks for name in branch_names(spec)}
    for branch in ("branch_identity", "branch_1x1", "branch_3x3"):
        if branch in present:
            yield Wrong(_backward(setup, _untrained(setup.backward, branch)), branch)


@training_bug(
    LIBRARY,
    "branch-gradient-divided",
    says="the gradient is divided among the branches instead of handed to each",
    advice="a sum hands the same gradient to every term",
    local=True,
)
def _branch_gradient_divided(setup: Setup) -> Iterator[Wrong]:
    right = setup.backward

    def backward(spec: BlockSpec, grad: Array, cache: BlockCache, ops: Ops) -> BlockGrads:
        divided = right(spec, grad / len(cache.branches), cache, ops)
        squeeze = {n: g * len(cache.branches) for n, g in divided.params.items() if n[:3] == "se."}
        return BlockGrads(divided.x, divided.params | squeeze)

    yield Wrong(_backward(setup, backward))


def _without_input_gradient(right: Backward, branch: str) -> Backward:
    def backward(spec: BlockSpec, grad: Array, cache: BlockCache, ops: Ops) -> BlockGrads:
        whole = right(spec, grad, cache, ops)
        if branch not in cache.branches or len(cache.branches) == 1:
            return whole
        others = {name: kept for name, kept in cache.branches.items() if name != branch}
        return BlockGrads(right(spec, grad, cache._replace(branches=others), ops).x, whole.params)

    return backward


def _untrained(right: Backward, branch: str) -> Backward:
    def backward(spec: BlockSpec, grad: Array, cache: BlockCache, ops: Ops) -> BlockGrads:
        whole = right(spec, grad, cache, ops)
        still = {n: 0 * g for n, g in whole.params.items() if n.startswith(branch)}
        return BlockGrads(whole.x, whole.params | still)

    return backward


# ------------------------------------------------------------------------ ReLU


@training_bug(
    LIBRARY,
    "relu-mask-wrong",
    says="the ReLU's gradient is wrong: {detail}",
    advice="the gradient passes where the ReLU's *input*, the sum of the branches, is positive",
    local=True,
)
def _relu_mask_wrong(setup: Setup) -> Iterator[Wrong]:
    for detail, backward in {
        "it passes everywhere": lambda grad_y, cache: grad_y,
        "it passes where the gradient is positive": lambda grad_y, cache: np.maximum(grad_y, 0),
        "it passes where the input is negative": lambda grad_y, cache: np.where(
            cache.blocked, grad_y, 0
        ),
        "it leaks 0.01 where the input is negative": lambda grad_y, cache: np.where(
            cache.blocked, 0.01 * grad_y, grad_y
        ),
    }.items():
        yield Wrong(with_ops(setup, relu_backward=backward), detail)
    for branch in ("branch_3x3", "branch_1x1"):
        masked = _backward(setup, _masked_by(branch, setup.backward))
        remembering = with_ops(
            masked, batch_norm_train_forward=_remembering(setup.ops.batch_norm_train_forward)
        )
        yield Wrong(remembering, f"it passes where {branch} is positive instead of the sum")


class _BatchNormMemory(NamedTuple):
    """Batch norm's cache, with the output."""

    x_hat: Array
    gamma: Array
    inv_std: Array
    mean: Array
    var: Array
    y: Array


def _remembering(right: Callable[..., tuple[Array, Any]]) -> Callable[..., tuple[Array, Any]]:
    def forward(x: Array, gamma: Array, beta: Array, *, eps: Any) -> tuple[Array, Any]:
        y, cache = right(x, gamma, beta, eps=eps)
        return y, _BatchNormMemory(
            cache.x_hat, cache.gamma, cache.inv_std, cache.mean, cache.var, y
        )

    return forward


def _masked_by(branch: str, right: Backward) -> Backward:
    """The block's backward pass with the ReLU's mask taken from one branch's output."""

    def backward(spec: BlockSpec, grad: Array, cache: BlockCache, ops: Ops) -> BlockGrads:
        memory = cache.branches[branch][1] if branch in cache.branches else None
        if not isinstance(memory, _BatchNormMemory):  # a layer without this bug
            return right(spec, grad, cache, ops)
        mask = cache.relu._replace(blocked=memory.y <= 0)
        return right(spec, grad, cache._replace(relu=mask), ops)

    return backward
