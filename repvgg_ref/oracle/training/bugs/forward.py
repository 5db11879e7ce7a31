"""The loss, batch norm's forward pass in training mode, and the running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Node
from repvgg_ref.ops.batch_norm import RunningStats
from repvgg_ref.oracle.training.bugs.base import (
    Wrong,
    training_bug,
    with_nodes,
    with_ops,
    with_recipe,
    with_result,
)
from repvgg_ref.oracle.training.run import Setup

# ------------------------------------------------------------------------ loss


def _loss(setup: Setup, *, loss: float = 1.0, grad: float = 1.0) -> Setup:
    """The setup with loss and gradient of the loss multiplied."""
    scaled = with_result(
        setup,
        "softmax_cross_entropy_forward",
        lambda found, *_, **__: (found[0] * loss, found[1]),
    )
    return with_result(scaled, "softmax_cross_entropy_backward", lambda found, _: grad * found)


@training_bug(
    "loss-summed",
    says="the loss is the sum over the batch instead of the mean",
    advice="divide the loss by N (reduction='mean')",
)
def _loss_summed(setup: Setup) -> Iterator[Wrong]:
    n = float(len(setup.x))
    yield Wrong(_loss(setup, loss=n, grad=n))


@training_bug(
    "loss-gradient-not-averaged",
    says="the loss is a mean, but its gradient misses the factor 1/N",
    advice="grad_logits = (softmax - target) / N",
)
def _loss_gradient_not_averaged(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_loss(setup, grad=float(len(setup.x))))


@training_bug(
    "loss-gradient-averaged-twice",
    says="the gradient of the loss is divided by N twice",
    advice="grad_logits = (softmax - target) / N, once",
)
def _loss_gradient_averaged_twice(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_loss(setup, grad=1 / len(setup.x)))


@training_bug(
    "label-smoothing",
    says="label smoothing is wrong: {detail}",
    advice="target = (1 - s) * one_hot + s / classes, with the recipe's s",
)
def _label_smoothing(setup: Setup) -> Iterator[Wrong]:
    s, classes = setup.recipe.label_smoothing, setup.network.num_classes
    others = {"it is left out": 0.0, "it is 0.1": 0.1, "it is 0.2": 0.2, "it is 0.05": 0.05}
    if classes > 1:  # s shared among the others only: the same form with s K / (K - 1)
        others["s is spread over the other classes only"] = s * classes / (classes - 1)
    for detail, value in others.items():
        if value != s and value <= 1:
            yield Wrong(with_recipe(setup, label_smoothing=value), detail)


@training_bug(
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
    "labels-shifted",
    says="the labels are off by {parameter:+.0f}",
    advice="classes count from 0",
)
def _labels_shifted(setup: Setup) -> Iterator[Wrong]:
    if setup.labels.ndim == 1:
        for shift in (1, -1):
            moved = (setup.labels + shift) % setup.network.num_classes
            yield Wrong(replace(setup, labels=moved), parameter=float(shift))


@training_bug(
    "aux-heads",
    says="the auxiliary heads are wrong: {detail}",
    advice="loss = CE(main) + 0.1 * sum of CE(aux), their gradients included",
)
def _aux_heads(setup: Setup) -> Iterator[Wrong]:
    def weighing(node: Node, weight: float) -> Node:
        aux = node.training_only and node.loss_weight
        return replace(node, loss_weight=weight) if aux else node

    if any(node.training_only for node in setup.network.nodes):
        without = with_nodes(setup, lambda node: None if node.training_only else node)
        yield Wrong(without, "their losses are left out")
        for weight in (1.0, 0.3, 0.4):
            others = with_nodes(setup, partial(weighing, weight=weight))
            yield Wrong(others, f"they weigh {weight:g} instead of 0.1")


# ------------------------------------------------------------- batch norm, forward


@training_bug(
    "bn-evaluation-mode",
    says="batch norm uses its running statistics while training",
    advice="call model.train() before the step",
    local=True,
)
def _bn_evaluation_mode(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(replace(setup, training=False))


@training_bug(
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
    "bn-eps",
    says="batch norm adds eps = {parameter:g} in training, the reference another",
    advice="set eps of every batch norm to the reference's (official code: 1e-5)",
)
def _bn_eps(setup: Setup) -> Iterator[Wrong]:
    for eps in (1e-3, 1e-4, 1e-6, 1e-8, 1e-12, 1e-2, 1e-5, 0.0):
        if eps != setup.eps:
            yield Wrong(replace(setup, eps=eps), parameter=eps)


# ------------------------------------------------------------- running statistics


def _averaging(setup: Setup, change: Callable[[Array, Array, int], tuple[Array, Array]]) -> Setup:
    """The setup that averages `change` of the batch's mean, biased variance and count."""
    right = setup.ops.update_running_stats

    def changed(
        old_mean: Array, old_var: Array, mean: Array, var: Array, *, momentum: Any, count: int
    ) -> RunningStats:
        seen = change(mean, var, count)
        return right(old_mean, old_var, *seen, momentum=momentum, count=count)

    return with_ops(setup, update_running_stats=changed)


@training_bug(
    "running-var-biased",
    says="the biased variance goes into running_var",
    advice="running_var takes var * n / (n - 1)",
)
def _running_var_biased(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_averaging(setup, lambda mean, var, n: (mean, var * (n - 1) / n)))


@training_bug(
    "running-mean-scaled",
    says="the running mean is scaled by the variance's factor n / (n - 1)",
    advice="the factor belongs to the variance only",
)
def _running_mean_scaled(setup: Setup) -> Iterator[Wrong]:
    yield Wrong(_averaging(setup, lambda mean, var, n: (mean * n / (n - 1), var)))


@training_bug(
    "running-var-is-deviation",
    says="running_var holds a standard deviation",
    advice="average variances, not their roots",
)
def _running_var_is_deviation(setup: Setup) -> Iterator[Wrong]:
    def rooted(mean: Array, var: Array, n: int) -> tuple[Array, Array]:
        return mean, np.sqrt(var * n / (n - 1)) * (n - 1) / n

    yield Wrong(_averaging(setup, rooted))


@training_bug(
    "running-momentum-reversed",
    says="old and new weights of the running averages are exchanged",
    advice="new = (1 - momentum) * old + momentum * batch; ONNX and Keras write it the other way",
)
def _running_momentum_reversed(setup: Setup) -> Iterator[Wrong]:
    if setup.bn_momentum != 0.5:
        yield Wrong(replace(setup, bn_momentum=1 - setup.bn_momentum))


@training_bug(
    "running-momentum-value",
    says="the running averages take {parameter:g} of each batch, the reference's another share",
    advice="set the batch norms' momentum to the reference's (torch and the official code: 0.1)",
)
def _running_momentum_value(setup: Setup) -> Iterator[Wrong]:
    for momentum in (0.1, 0.01, 0.03, 0.05, 0.001, 0.003, 0.2, 1.0):
        if momentum != setup.bn_momentum:
            yield Wrong(replace(setup, bn_momentum=momentum), parameter=momentum)


@training_bug(
    "running-statistics-frozen",
    says="the running statistics are not updated",
    advice="apply the update of the batch norms' running averages after the forward pass",
)
def _running_statistics_frozen(setup: Setup) -> Iterator[Wrong]:
    frozen = with_result(
        setup, "update_running_stats", lambda _, mean, var, *__, **___: RunningStats(mean, var)
    )
    yield Wrong(frozen)


@training_bug(
    "running-statistics-twice",
    says="the running statistics are updated twice a step",
    advice="one forward pass in training mode a step: an extra one moves the averages again",
)
def _running_statistics_twice(setup: Setup) -> Iterator[Wrong]:
    right: Callable[..., RunningStats] = setup.ops.update_running_stats
    twice = with_result(
        setup,
        "update_running_stats",
        lambda once, _, __, mean, var, **how: right(*once, mean, var, **how),
    )
    yield Wrong(twice)
