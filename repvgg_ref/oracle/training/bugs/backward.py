"""Gradients of batch norm, branches and ReLU that are missing or taken of the wrong thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.run import Linear
from repvgg_ref.ops.batch_norm import BatchNormGrads
from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.training.bugs.wrong_block import (
    Detached,
    Divided,
    Doubled,
    Halved,
    Untrained,
    branches,
    kernels,
    with_branch,
    with_mask,
    with_sum,
)
from repvgg_ref.oracle.training.bugs.wrong_setup import (
    TrainingSite,
    TrainingVariants,
    with_ops,
    with_result,
)
from repvgg_ref.oracle.training.run import Setup

# ------------------------------------------------------------------ batch norm


def _bn(
    site: TrainingSite, change: Callable[[BatchNormGrads, Array, Any], BatchNormGrads]
) -> Setup:
    """The setup with `change` of batch norm's gradients; it gets grad_y and the cache too."""
    return with_result(site.program, "batch_norm_train_backward", change)


def _through_mean(grad_y: Array, cache: Any) -> Array:
    """What batch norm's gradient subtracts for the mean, (N, C, H, W)."""
    slope = cache.gamma * cache.inv_std
    return np.asarray((slope * grad_y.mean(axis=(0, 2, 3)))[:, None, None])


def _through_var(grad_y: Array, cache: Any) -> Array:
    """What it subtracts for the variance."""
    slope = cache.gamma * cache.inv_std
    share = (grad_y * cache.x_hat).mean(axis=(0, 2, 3))
    return np.asarray((slope * share)[:, None, None] * cache.x_hat)


@bug(
    "bn-backward-constant-statistics",
    says="batch norm's backward pass holds the batch's mean and variance constant",
    advice="grad_x = gamma * inv_std * (grad_y - mean(grad_y) - x_hat * mean(grad_y * x_hat))",
)
def _bn_backward_constant_statistics(site: TrainingSite) -> TrainingVariants:
    yield Variant(
        _bn(
            site,
            lambda g, dy, c: g._replace(
                grad_x=g.grad_x + _through_mean(dy, c) + _through_var(dy, c)
            ),
        )
    )


@bug(
    "bn-backward-without-mean-term",
    says="batch norm's backward pass leaves out the gradient through the batch's mean",
    advice="subtract mean(grad_y) over N, H, W",
)
def _bn_backward_without_mean_term(site: TrainingSite) -> TrainingVariants:
    yield Variant(_bn(site, lambda g, dy, c: g._replace(grad_x=g.grad_x + _through_mean(dy, c))))


@bug(
    "bn-backward-without-variance-term",
    says="batch norm's backward pass leaves out the gradient through the batch's variance",
    advice="subtract x_hat * mean(grad_y * x_hat)",
)
def _bn_backward_without_variance_term(site: TrainingSite) -> TrainingVariants:
    yield Variant(_bn(site, lambda g, dy, c: g._replace(grad_x=g.grad_x + _through_var(dy, c))))


@bug(
    "bn-backward-without-scale",
    says="batch norm's input gradient is not multiplied by {detail}",
    advice="the input gradient carries the factor gamma / sqrt(var + eps)",
)
def _bn_backward_without_scale(site: TrainingSite) -> TrainingVariants:
    def without(factor: str) -> Setup:
        return _bn(
            site,
            lambda g, _, c: g._replace(grad_x=g.grad_x / getattr(c, factor)[:, None, None]),
        )

    yield Variant(without("gamma"), detail="gamma")
    yield Variant(without("inv_std"), detail="1 / sqrt(var + eps)")


@bug(
    "gamma-beta-gradients-swapped",
    says="the gradients of gamma and beta are exchanged",
    advice="grad_gamma = sum(grad_y * x_hat), grad_beta = sum(grad_y)",
)
def _gamma_beta_gradients_swapped(site: TrainingSite) -> TrainingVariants:
    yield Variant(_bn(site, lambda g, *_: BatchNormGrads(g.grad_x, g.grad_beta, g.grad_gamma)))


@bug(
    "gamma-gradient-of-unnormalised-input",
    says="gamma's gradient uses {detail} where the normalised input belongs",
    advice="grad_gamma = sum(grad_y * x_hat), x_hat = (x - mean) / sqrt(var + eps)",
)
def _gamma_gradient_of_unnormalised_input(site: TrainingSite) -> TrainingVariants:
    yield Variant(
        _bn(site, lambda g, _, c: g._replace(grad_gamma=g.grad_gamma / c.inv_std)),
        detail="x - mean",
    )
    yield Variant(
        _bn(
            site,
            lambda g, _, c: g._replace(grad_gamma=g.grad_gamma / c.inv_std + c.mean * g.grad_beta),
        ),
        detail="x itself",
    )


@bug(
    "bn-parameter-gradients-averaged",
    says="gamma's and beta's gradients are means over the pixels instead of sums",
    advice="sum over N, H and W",
)
def _bn_parameter_gradients_averaged(site: TrainingSite) -> TrainingVariants:
    def averaged(g: BatchNormGrads, grad_y: Array, _: Any) -> BatchNormGrads:
        count = grad_y.size / grad_y.shape[1]
        return BatchNormGrads(g.grad_x, g.grad_gamma / count, g.grad_beta / count)

    yield Variant(_bn(site, averaged))


# -------------------------------------------------------------------- branches


@bug(
    "identity-gradient-missing",
    says="the identity branch sends no gradient to the block's input",
    advice="add the identity branch's input gradient to those of the other branches",
)
def _identity_gradient_missing(site: TrainingSite) -> TrainingVariants:
    for name in _branches(site, lambda branch: not kernels(branch)):
        yield Variant(with_branch(site.program, name, Detached))


@bug(
    "branch-1x1-gradient-missing",
    says="the 1x1 branch sends no gradient to the block's input",
    advice="add the 1x1 branch's input gradient to those of the other branches",
)
def _branch_1x1_gradient_missing(site: TrainingSite) -> TrainingVariants:
    for name in _branches(site, lambda branch: kernels(branch) == {(1, 1)}):
        yield Variant(with_branch(site.program, name, Detached))


@bug(
    "branch-gradient-missing",
    says="{detail} sends no gradient to the block's input",
    advice="add the input gradients of all branches",
)
def _branch_gradient_missing(site: TrainingSite) -> TrainingVariants:
    for name in _branches(site, lambda branch: kernels(branch) - {(1, 1)}):
        yield Variant(with_branch(site.program, name, Detached), detail=name)


@bug(
    "branch-not-trained",
    says="the arrays of {detail} get no gradient (all are zero)",
    advice="check that the branch is part of the graph and that its parameters are registered",
)
def _branch_not_trained(site: TrainingSite) -> TrainingVariants:
    for name in _branches(site, lambda branch: branch.shapes()):
        yield Variant(with_branch(site.program, name, Untrained), detail=name)


@bug(
    "branch-gradient-scaled",
    says="{detail} its gradient",
    advice="a sum hands the same gradient to every term, once",
)
def _branch_gradient_scaled(site: TrainingSite) -> TrainingVariants:
    for change, share in ((Doubled, "twice"), (Halved, "half of")):
        for name in _branches(site, lambda branch: True):
            yield Variant(with_branch(site.program, name, change), detail=f"{name} takes {share}")


@bug(
    "branch-gradient-divided",
    says="the gradient is divided among the branches instead of handed to each",
    advice="a sum hands the same gradient to every term",
)
def _branch_gradient_divided(site: TrainingSite) -> TrainingVariants:
    yield Variant(with_sum(site.program, lambda total: Divided(*total.parts)))


def _branches(site: TrainingSite, chosen: Callable[[Linear], object]) -> list[str]:
    """The names of the blocks' branches, the first one last; those that are `chosen`."""
    found = {
        name: branch
        for node in site.program.network.nodes
        for name, branch in branches(node.op).items()
    }
    return [name for name, branch in reversed(found.items()) if chosen(branch)]


# ------------------------------------------------------------------------ ReLU


@bug(
    "relu-mask-wrong",
    says="the ReLU's gradient is wrong: {detail}",
    advice="the gradient passes where the ReLU's *input*, the sum of the branches, is positive",
)
def _relu_mask_wrong(site: TrainingSite) -> TrainingVariants:
    setup = site.program
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
        yield Variant(with_ops(setup, relu_backward=backward), detail=detail)
    for name in _branches(site, lambda branch: True):
        yield Variant(
            with_mask(setup, name), detail=f"it passes where {name} is positive instead of the sum"
        )
