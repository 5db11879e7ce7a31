"""The loss, batch norm's forward pass in training mode, and the running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import BlockCache, BlockGrads, train_block_backward
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import Ops
from repvgg_ref.ops.batch_norm import RunningStats
from repvgg_ref.oracle.training.bugs.base import TrainingBug, Wrong, training_bug, with_ops
from repvgg_ref.oracle.training.run import Setup

LIBRARY: list[TrainingBug] = []


# ------------------------------------------------------------------------ loss


def _loss(setup: Setup, *, loss: float = 1.0, grad: float = 1.0) -> Setup:
    """The setup with loss and gradient of the loss multiplied."""
    forward, backward = (
        setup.ops.softmax_cross_entropy_forward,
        setup.ops.softmax_cross_entropy_backward,
    )

    def scaled(logits: Array, labels: Array, *, label_smoothing: float) -> tuple[Array, Any]:
        value, cache = forward(logits, labels, label_smoothing=label_smoothing)
        return value * loss, cache

    return with_ops(
        setup,
        softmax_cross_entropy_forward=scaled,
        softmax_cross_entropy_backward=lambda cache: grad * backward(cache),
    )


@training_bug(
    LIBRARY,
    "loss-summed",
    says="the loss is the sum over the batch instead of the mean",
    advice="divide the loss by N (reduction='mean')",
)
def _loss_summed(setup: Setup) -> Iterator[Wrong]:
    n = float(len(setup.x))
    yield Wrong(_loss(setup, loss=n, grad=n))


@training_bug(
    LIBRARY,
    "loss-gradient-not-averaged",
    says="the loss is a mean, but its gradient misses the factor 1/N",
    advice="grad_logits = (softmax - target) / N",
)
def _loss_gradient_not_averaged(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_loss(setup, grad=float(len(setup.x))))


@training_bug(
    LIBRARY,
    "loss-gradient-averaged-twice",
    says="the gradient of the loss is divided by N twice",
    advice="grad_logits = (softmax - target) / N, once",
)
def _loss_gradient_averaged_twice(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_loss(setup, grad=1 / len(setup.x)))


@training_bug(
    LIBRARY,
    "label-smoothing",
    says="label smoothing is wrong: {detail}",
    advice="target = (1 - s) * one_hot + s / classes, with the recipe's s",
)
def _label_smoothing(setup: Setup) -> Iterator[Wrong]:
    s, classes = setup.recipe.label_smoothing, setup.arch.num_classes
    others = {"it is left out": 0.0, "it is 0.1": 0.1, "it is 0.2": 0.2, "it is 0.05": 0.05}
    if classes > 1:  # s shared among the others only: the same form with s K / (K - 1)
        others["s is spread over the other classes only"] = s * classes / (classes - 1)
    for detail, value in others.items():
        if value != s and value <= 1:
            yield Wrong(replace(setup, recipe=replace(setup.recipe, label_smoothing=value)), detail)


@training_bug(
    LIBRARY,
    "softmax-twice",
    says="the loss takes the softmax of what is a softmax already",
    advice="hand logits to the cross-entropy, not probabilities",
)
def _softmax_twice(setup: Setup) -> Iterator[Wrong]:
    forward = setup.ops.softmax_cross_entropy_forward
    backward = setup.ops.softmax_cross_entropy_backward

    def twice(logits: Array, labels: Array, *, label_smoothing: float) -> tuple[Array, Any]:
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss, cache = forward(p, labels, label_smoothing=label_smoothing)
        return loss, (p, cache)

    def back(kept: Any) -> Array:
        p, cache = kept
        grad = backward(cache)
        return np.asarray(p * (grad - (grad * p).sum(axis=1, keepdims=True)))

    yield Wrong(
        with_ops(setup, softmax_cross_entropy_forward=twice, softmax_cross_entropy_backward=back)
    )


@training_bug(
    LIBRARY,
    "labels-shifted",
    says="the labels are off by {parameter:+.0f}",
    advice="classes count from 0",
)
def _labels_shifted(setup: Setup) -> Iterator[Wrong]:
    if setup.labels.ndim == 1:
        for shift in (1, -1):
            moved = (setup.labels + shift) % setup.arch.num_classes
            yield Wrong(replace(setup, labels=moved), parameter=float(shift))


@training_bug(
    LIBRARY,
    "aux-heads",
    says="the auxiliary heads are wrong: {detail}",
    advice="loss = CE(main) + 0.1 * sum of CE(aux), their gradients included",
)
def _aux_heads(setup: Setup) -> Iterator[Wrong]:
    if not setup.arch.aux_heads:
        return
    yield Wrong(replace(setup, aux=False), "their losses are left out")
    for weight in (1.0, 0.3, 0.4):

        def heavier(ops: Ops, factor: float = weight / 0.1) -> Ops:
            return _loss(replace(setup, ops=ops), loss=factor, grad=factor).ops

        yield Wrong(replace(setup, aux_ops=heavier), f"they weigh {weight:g} instead of 0.1")


# ------------------------------------------------------------- batch norm, forward


@training_bug(
    LIBRARY,
    "bn-evaluation-mode",
    says="batch norm uses its running statistics while training",
    advice="call model.train() before the step",
    local=True,
)
def _bn_evaluation_mode(setup: Setup) -> Iterator[Wrong]:
    def backward(spec: BlockSpec, grad: Array, cache: BlockCache, ops: Ops) -> BlockGrads:
        return train_block_backward(spec, grad, cache, ops=ops, training=False)

    yield Wrong(replace(setup, training=False, backward=backward))


@training_bug(
    LIBRARY,
    "bn-normalises-by-unbiased-variance",
    says="batch norm normalises by the unbiased variance, n / (n - 1) times the biased one",
    advice="normalise by the biased variance; the unbiased one goes into running_var only",
    local=True,
)
def _bn_normalises_by_unbiased_variance(setup: Setup) -> Iterator[Wrong]:
    right, back = setup.ops.batch_norm_train_forward, setup.ops.batch_norm_train_backward

    def forward(x: Array, gamma: Array, beta: Array, *, eps: Any) -> tuple[Array, Any]:
        n = x.size / x.shape[1]
        # var n/(n-1) + eps = (var + eps (n-1)/n) n/(n-1): the right one with other eps and gamma
        shrunk = np.sqrt((n - 1) / n)
        y, cache = right(x, gamma * shrunk, beta, eps=eps * (n - 1) / n)
        return y, cache

    def backward(grad_y: Array, cache: Any) -> Any:
        n = grad_y.size / grad_y.shape[1]
        grads = back(grad_y, cache)
        return grads._replace(grad_gamma=grads.grad_gamma * np.sqrt((n - 1) / n))

    yield Wrong(
        with_ops(setup, batch_norm_train_forward=forward, batch_norm_train_backward=backward)
    )


@training_bug(
    LIBRARY,
    "bn-eps",
    says="batch norm adds eps = {parameter:g} in training, the reference another",
    advice="set eps of every batch norm to the reference's (official code: 1e-5)",
)
def _bn_eps(setup: Setup) -> Iterator[Wrong]:
    for eps in (1e-3, 1e-4, 1e-6, 1e-8, 1e-12, 1e-2, 1e-5, 0.0):
        if eps != setup.eps:
            yield Wrong(replace(setup, eps=eps), parameter=eps)


# ------------------------------------------------------------- running statistics


def _running(setup: Setup, change: Callable[..., RunningStats]) -> Setup:
    """The setup with other running averages; `change` gets what `update_running_stats` gets."""
    return with_ops(setup, update_running_stats=change)


@training_bug(
    LIBRARY,
    "running-var-biased",
    says="the biased variance goes into running_var",
    advice="running_var takes var * n / (n - 1)",
)
def _running_var_biased(setup: Setup) -> Iterator[Wrong]:
    right = setup.ops.update_running_stats

    def biased(
        old_mean: Array, old_var: Array, mean: Array, var: Array, **how: Any
    ) -> RunningStats:
        return right(old_mean, old_var, mean, var * (how["count"] - 1) / how["count"], **how)

    yield Wrong(_running(setup, biased))


@training_bug(
    LIBRARY,
    "running-mean-scaled",
    says="the running mean is scaled by the variance's factor n / (n - 1)",
    advice="the factor belongs to the variance only",
)
def _running_mean_scaled(setup: Setup) -> Iterator[Wrong]:
    right = setup.ops.update_running_stats

    def scaled(
        old_mean: Array, old_var: Array, mean: Array, var: Array, **how: Any
    ) -> RunningStats:
        return right(old_mean, old_var, mean * how["count"] / (how["count"] - 1), var, **how)

    yield Wrong(_running(setup, scaled))


@training_bug(
    LIBRARY,
    "running-var-is-deviation",
    says="running_var holds a standard deviation",
    advice="average variances, not their roots",
)
def _running_var_is_deviation(setup: Setup) -> Iterator[Wrong]:
    right = setup.ops.update_running_stats

    def rooted(
        old_mean: Array, old_var: Array, mean: Array, var: Array, **how: Any
    ) -> RunningStats:
        n = how["count"]
        return right(old_mean, old_var, mean, np.sqrt(var * n / (n - 1)) * (n - 1) / n, **how)

    yield Wrong(_running(setup, rooted))


@training_bug(
    LIBRARY,
    "running-momentum-reversed",
    says="old and new weights of the running averages are exchanged",
    advice="new = (1 - momentum) * old + momentum * batch; ONNX and Keras write it the other way",
)
def _running_momentum_reversed(setup: Setup) -> Iterator[Wrong]:
    if setup.bn_momentum != 0.5:
        yield Wrong(replace(setup, bn_momentum=1 - setup.bn_momentum))


@training_bug(
    LIBRARY,
    "running-momentum-value",
    says="the running averages take {parameter:g} of each batch, the reference's another share",
    advice="set the batch norms' momentum to the reference's (torch and the official code: 0.1)",
)
def _running_momentum_value(setup: Setup) -> Iterator[Wrong]:
    for momentum in (0.1, 0.01, 0.03, 0.05, 0.001, 0.003, 0.2, 1.0):
        if momentum != setup.bn_momentum:
            yield Wrong(replace(setup, bn_momentum=momentum), parameter=momentum)


@training_bug(
    LIBRARY,
    "running-statistics-frozen",
    says="the running statistics are not updated",
    advice="apply the update of the batch norms' running averages after the forward pass",
)
def _running_statistics_frozen(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_running(setup, lambda mean, var, *_, **__: RunningStats(mean, var)))


@training_bug(
    LIBRARY,
    "running-statistics-twice",
    says="the running statistics are updated twice a step",
    advice="one forward pass in training mode a step: an extra one moves the averages again",
)
def _running_statistics_twice(setup: Setup) -> Iterator[Wrong]:
    right = setup.ops.update_running_stats

    def twice(old_mean: Array, old_var: Array, *batch: Array, **how: Any) -> RunningStats:
        return right(*right(old_mean, old_var, *batch, **how), *batch, **how)

    yield Wrong(_running(setup, twice))
