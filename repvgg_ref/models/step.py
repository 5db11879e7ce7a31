"""One training step: forward with batch statistics, loss, backward. Pure: nothing is modified.

Source: section 4.1 of arXiv 2101.03697; for RepVGGplus the official trainer's
``loss = CE(main) + 0.1 * sum CE(aux)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.repvgg import (
    BatchStats,
    BlockCache,
    train_block_backward,
    train_block_forward,
    train_block_parameter_grads,
)
from repvgg_ref.models.architectures import Architecture, AuxHeadSpec
from repvgg_ref.ops import Ops

AUX_WEIGHT = 0.1


class StepResult(NamedTuple):
    """Loss (mean over the batch), logits, gradients, and running statistics after the step."""

    loss: Any
    logits: Array
    grads: dict[str, Array]
    stats: dict[str, Array]


class AuxCache(NamedTuple):
    """What the backward pass of an auxiliary head needs."""

    conv: Any
    bn: Any
    relu: Any
    pool: Any
    linear: Any
    loss: Any


def training_step(
    arch: Architecture,
    params: Mapping[str, Array],
    x: Array,
    labels: Array,
    *,
    ops: Ops,
    eps: Any,
    momentum: Any,
    label_smoothing: float,
) -> StepResult:
    """Compute loss and gradients of `arch`; names are canonical.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    labels : int array (N,), or float array (N, num_classes)
    """
    caches: dict[str, BlockCache] = {}
    aux_caches: dict[str, tuple[AuxHeadSpec, AuxCache]] = {}
    batch_stats: dict[str, BatchStats] = {}
    aux_loss: Any = 0
    heads = {head.after: head for head in arch.aux_heads}
    x = ops.enter(x)
    for spec in arch.blocks:
        x, cache = train_block_forward(spec, params, x, ops=ops, eps=eps, training=True)
        caches[spec.name] = cache
        batch_stats |= {f"{spec.name}.{branch}.bn": s for branch, s in cache.stats.items()}
        if head := heads.get(spec.name):
            loss, aux_cache, stats = aux_forward(
                head, params, x, labels, ops=ops, eps=eps, label_smoothing=label_smoothing
            )
            aux_caches[spec.name] = head, aux_cache
            batch_stats[f"{head.name}.bn"] = stats
            aux_loss = aux_loss + AUX_WEIGHT * loss

    pooled, pool_cache = ops.global_avg_pool_forward(x)
    logits, linear_cache = ops.linear_forward(
        pooled, params["linear.weight"], params["linear.bias"]
    )
    loss, loss_cache = ops.softmax_cross_entropy_forward(
        logits, labels, label_smoothing=label_smoothing
    )

    grads: dict[str, Array] = {}
    linear = ops.linear_backward(ops.softmax_cross_entropy_backward(loss_cache), linear_cache)
    grads["linear.weight"], grads["linear.bias"] = linear.grad_weight, linear.grad_bias
    grad = ops.global_avg_pool_backward(linear.grad_x, pool_cache)
    for spec in reversed(arch.blocks):
        if spec.name in aux_caches:
            grad = grad + aux_backward(*aux_caches[spec.name], grads, ops=ops)
        cache = caches.pop(spec.name)
        if spec is arch.blocks[0]:
            params_of_block = train_block_parameter_grads(spec, grad, cache, ops=ops)
        else:
            block = train_block_backward(spec, grad, cache, ops=ops, training=True)
            params_of_block, grad = block.params, block.x
        grads |= {f"{spec.name}.{part}": value for part, value in params_of_block.items()}
    return StepResult(
        loss + aux_loss, logits, grads, _running(params, batch_stats, ops=ops, momentum=momentum)
    )


def _running(
    params: Mapping[str, Array], batch_stats: Mapping[str, BatchStats], *, ops: Ops, momentum: Any
) -> dict[str, Array]:
    """Running statistics after this step, one pure update a batch norm."""
    after: dict[str, Array] = {}
    for bn, batch in batch_stats.items():
        running = ops.update_running_stats(
            params[f"{bn}.running_mean"],
            params[f"{bn}.running_var"],
            batch.mean,
            batch.var,
            momentum=momentum,
            count=batch.pixels,
        )
        after[f"{bn}.running_mean"], after[f"{bn}.running_var"] = running
        after[f"{bn}.num_batches_tracked"] = params[f"{bn}.num_batches_tracked"] + 1
    return after


def aux_forward(
    head: AuxHeadSpec,
    params: Mapping[str, Array],
    x: Array,
    labels: Array,
    *,
    ops: Ops,
    eps: Any,
    label_smoothing: float,
) -> tuple[Any, AuxCache, BatchStats]:
    """Conv 3x3 stride 2, BN, ReLU, pool, linear, loss."""
    z, conv = ops.conv2d_forward(
        x, params[f"{head.name}.conv.weight"], None, stride=2, padding=1, dilation=1, groups=1
    )
    y, bn = ops.batch_norm_train_forward(
        z, params[f"{head.name}.bn.gamma"], params[f"{head.name}.bn.beta"], eps=eps
    )
    y, relu = ops.relu_forward(y)
    pooled, pool = ops.global_avg_pool_forward(y)
    logits, linear = ops.linear_forward(
        pooled, params[f"{head.name}.linear.weight"], params[f"{head.name}.linear.bias"]
    )
    loss, loss_cache = ops.softmax_cross_entropy_forward(
        logits, labels, label_smoothing=label_smoothing
    )
    stats = BatchStats(bn.mean, bn.var, z.size // len(bn.mean))
    return loss, AuxCache(conv, bn, relu, pool, linear, loss_cache), stats


def aux_backward(head: AuxHeadSpec, cache: AuxCache, grads: dict[str, Array], *, ops: Ops) -> Array:
    """Backward of `aux_forward` with the weight 0.1; puts its gradients into `grads`."""
    grad = AUX_WEIGHT * ops.softmax_cross_entropy_backward(cache.loss)
    linear = ops.linear_backward(grad, cache.linear)
    grad = ops.global_avg_pool_backward(linear.grad_x, cache.pool)
    bn = ops.batch_norm_train_backward(ops.relu_backward(grad, cache.relu), cache.bn)
    conv = ops.conv2d_backward(bn.grad_x, cache.conv)
    grads |= {
        f"{head.name}.linear.weight": linear.grad_weight,
        f"{head.name}.linear.bias": linear.grad_bias,
        f"{head.name}.bn.gamma": bn.grad_gamma,
        f"{head.name}.bn.beta": bn.grad_beta,
        f"{head.name}.conv.weight": conv.grad_weight,
    }
    return conv.grad_x
