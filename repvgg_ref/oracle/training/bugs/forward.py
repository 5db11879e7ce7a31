"""The loss, batch norm's forward pass in training mode, and the running statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.dense import IGNORED
from repvgg_ref.models.graph import Node
from repvgg_ref.ops.batch_norm import RunningStats
from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.training.bugs.wrong_setup import (
    TrainingSite,
    TrainingVariants,
    averaged_over,
    with_loss,
    with_nodes,
    with_ops,
    with_recipe,
    with_result,
)
from repvgg_ref.oracle.training.run import Setup

_UNFELT = math.ulp(
    0.0
)  # what it multiplies rounds to zero, but a head of this weight has gradients

# ------------------------------------------------------------------------ loss


def _loss(site: TrainingSite, *, loss: float = 1.0, grad: float = 1.0) -> Setup:
    """The setup with loss and gradient of the loss multiplied."""
    return with_loss(site.program, lambda found: found * loss, lambda found: grad * found)


@bug(
    "loss-summed",
    says="the loss is the sum over the batch instead of the mean",
    advice="divide the loss by what it is summed over (reduction='mean')",
    scope="network",
)
def _loss_summed(site: TrainingSite) -> TrainingVariants:
    n = averaged_over(site.program)
    yield Variant(_loss(site, loss=n, grad=n))


@bug(
    "loss-gradient-not-averaged",
    says="the loss is a mean, but its gradient misses the factor 1/N",
    advice="grad_logits = (softmax - target) / N, N all that the loss is a mean over",
    scope="network",
)
def _loss_gradient_not_averaged(site: TrainingSite) -> TrainingVariants:
    yield Variant(_loss(site, grad=averaged_over(site.program)))


@bug(
    "loss-gradient-averaged-twice",
    says="the gradient of the loss is divided by N twice",
    advice="grad_logits = (softmax - target) / N, once",
    scope="network",
)
def _loss_gradient_averaged_twice(site: TrainingSite) -> TrainingVariants:
    yield Variant(_loss(site, grad=1 / averaged_over(site.program)))


@bug(
    "label-smoothing",
    says="label smoothing is wrong: {detail}",
    advice="target = (1 - s) * one_hot + s / classes, with the recipe's s",
    scope="network",
)
def _label_smoothing(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if setup.recipe.pixels:
        return
    s, classes = setup.recipe.label_smoothing, setup.network.num_classes
    others = {"it is left out": 0.0, "it is 0.1": 0.1, "it is 0.2": 0.2, "it is 0.05": 0.05}
    if classes > 1:  # s shared among the others only: the same form with s K / (K - 1)
        others["s is spread over the other classes only"] = s * classes / (classes - 1)
    for detail, value in others.items():
        if value != s and value <= 1:
            yield Variant(with_recipe(setup, label_smoothing=value), detail=detail)


@bug(
    "softmax-twice",
    says="the loss takes the softmax of what is a softmax already",
    advice="hand logits to the cross-entropy, not probabilities",
    scope="network",
)
def _softmax_twice(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    kind = "pixel" if setup.recipe.pixels else "softmax"
    forward = getattr(setup.ops, f"{kind}_cross_entropy_forward")
    backward = getattr(setup.ops, f"{kind}_cross_entropy_backward")

    def twice(logits: Array, labels: Array, **how: Any) -> tuple[Array, Any]:
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss, cache = forward(p, labels, **how)
        return loss, (p, cache)

    def back(kept: Any) -> Array:
        p, cache = kept
        grad = backward(cache)
        return np.asarray(p * (grad - (grad * p).sum(axis=1, keepdims=True)))

    changes = {f"{kind}_cross_entropy_forward": twice, f"{kind}_cross_entropy_backward": back}
    yield Variant(with_ops(setup, **changes))


@bug(
    "labels-shifted",
    says="the labels are off by {parameter:+.0f}",
    advice="classes count from 0",
    scope="network",
)
def _labels_shifted(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if setup.labels.dtype.kind in "iu":
        counts = setup.labels != (IGNORED if setup.recipe.pixels else -1)
        for shift in (1, -1):
            moved = (setup.labels + shift) % setup.network.num_classes
            moved = np.where(counts, moved, setup.labels)
            yield Variant(replace(setup, labels=moved), parameter=float(shift))


@bug(
    "aux-heads",
    says="the auxiliary heads are wrong: {detail}",
    advice="loss = CE(main) + the reference's weight * sum of CE(aux), their gradients included",
    scope="network",
)
def _aux_heads(site: TrainingSite) -> TrainingVariants:
    setup = site.program

    def weighing(node: Node, weight: float) -> Node:
        aux = node.training_only and node.loss_weight
        return replace(node, loss_weight=weight) if aux else node

    weights = [node.loss_weight for node in setup.network.nodes if node.training_only]
    right = max(weights, default=0.0)
    if right:
        without = with_nodes(setup, lambda node: None if node.training_only else node)
        yield Variant(without, detail="their losses are left out")
        for weight in (1.0, 0.3, 0.4, 0.1, 0.0):
            if weight != right:
                others = with_nodes(setup, partial(weighing, weight=weight or _UNFELT))
                yield Variant(others, detail=f"they weigh {weight:g} instead of {right:g}")


# ------------------------------------------------------------- batch norm, forward


@bug(
    "bn-evaluation-mode",
    says="batch norm uses its running statistics while training",
    advice="call model.train() before the step",
)
def _bn_evaluation_mode(site: TrainingSite) -> TrainingVariants:
    yield Variant(replace(site.program, training=False))


@bug(
    "bn-normalises-by-unbiased-variance",
    says="batch norm normalises by the unbiased variance, n / (n - 1) times the biased one",
    advice="normalise by the biased variance; the unbiased one goes into running_var only",
)
def _bn_normalises_by_unbiased_variance(site: TrainingSite) -> TrainingVariants:
    setup = site.program
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

    yield Variant(
        with_ops(setup, batch_norm_train_forward=forward, batch_norm_train_backward=backward)
    )


@bug(
    "bn-eps",
    says="batch norm adds eps = {parameter:g} in training, the reference another",
    advice="set eps of every batch norm to the reference's (official code: 1e-5)",
    scope="network",
)
def _bn_eps(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    for eps in (1e-3, 1e-4, 1e-6, 1e-8, 1e-12, 1e-2, 1e-5, 0.0):
        if eps != setup.eps:
            yield Variant(replace(setup, eps=eps), parameter=eps)


# ------------------------------------------------------------- running statistics


def _averaging(
    site: TrainingSite, change: Callable[[Array, Array, int], tuple[Array, Array]]
) -> Setup:
    """The setup that averages `change` of the batch's mean, biased variance and count."""
    right = site.program.ops.update_running_stats

    def changed(
        old_mean: Array, old_var: Array, mean: Array, var: Array, *, momentum: Any, count: int
    ) -> RunningStats:
        seen = change(mean, var, count)
        return right(old_mean, old_var, *seen, momentum=momentum, count=count)

    return with_ops(site.program, update_running_stats=changed)


@bug(
    "running-var-biased",
    says="the biased variance goes into running_var",
    advice="running_var takes var * n / (n - 1)",
    scope="network",
)
def _running_var_biased(site: TrainingSite) -> TrainingVariants:
    yield Variant(_averaging(site, lambda mean, var, n: (mean, var * (n - 1) / n)))


@bug(
    "running-mean-scaled",
    says="the running mean is scaled by the variance's factor n / (n - 1)",
    advice="the factor belongs to the variance only",
    scope="network",
)
def _running_mean_scaled(site: TrainingSite) -> TrainingVariants:
    yield Variant(_averaging(site, lambda mean, var, n: (mean * n / (n - 1), var)))


@bug(
    "running-var-is-deviation",
    says="running_var holds a standard deviation",
    advice="average variances, not their roots",
    scope="network",
)
def _running_var_is_deviation(site: TrainingSite) -> TrainingVariants:
    def rooted(mean: Array, var: Array, n: int) -> tuple[Array, Array]:
        return mean, np.sqrt(var * n / (n - 1)) * (n - 1) / n

    yield Variant(_averaging(site, rooted))


@bug(
    "running-momentum-reversed",
    says="old and new weights of the running averages are exchanged",
    advice="new = (1 - momentum) * old + momentum * batch; ONNX and Keras write it the other way",
    scope="network",
)
def _running_momentum_reversed(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if setup.bn_momentum != 0.5:
        yield Variant(replace(setup, bn_momentum=1 - setup.bn_momentum))


@bug(
    "running-momentum-value",
    says="the running averages take {parameter:g} of each batch, the reference's another share",
    advice="set the batch norms' momentum to the reference's (torch and the official code: 0.1)",
    scope="network",
)
def _running_momentum_value(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    for momentum in (0.1, 0.01, 0.03, 0.05, 0.001, 0.003, 0.2, 1.0):
        if momentum != setup.bn_momentum:
            yield Variant(replace(setup, bn_momentum=momentum), parameter=momentum)


@bug(
    "running-statistics-frozen",
    says="the running statistics are not updated",
    advice="apply the update of the batch norms' running averages after the forward pass",
    scope="network",
)
def _running_statistics_frozen(site: TrainingSite) -> TrainingVariants:
    frozen = with_result(
        site.program,
        "update_running_stats",
        lambda _, mean, var, *__, **___: RunningStats(mean, var),
    )
    yield Variant(frozen)


@bug(
    "running-statistics-twice",
    says="the running statistics are updated twice a step",
    advice="one forward pass in training mode a step: an extra one moves the averages again",
    scope="network",
)
def _running_statistics_twice(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    right: Callable[..., RunningStats] = setup.ops.update_running_stats
    twice = with_result(
        setup,
        "update_running_stats",
        lambda once, _, __, mean, var, **how: right(*once, mean, var, **how),
    )
    yield Variant(twice)
