"""The training steps, right or wrong: a `Setup` says how, `run` gives every number of them.

It is `models.step` and `train.sgd` in the same order of operations (a test holds them equal, bit by
bit), with a place at each layer where a bug can be planted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import (
    BatchStats,
    BlockCache,
    BlockGrads,
    train_block_backward,
    train_block_forward,
)
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.graph import Network
from repvgg_ref.models.names import official_dialect
from repvgg_ref.models.network import Model, require_branches, require_image_batch
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.step import AUX_WEIGHT, aux_backward, aux_forward
from repvgg_ref.ops import REFERENCE, Ops
from repvgg_ref.oracle.training.recipe import Recipe
from repvgg_ref.train.sgd import Factors, SgdStep, sgd_step

Arrays = dict[str, Array]
Backward = Callable[[BlockSpec, Array, BlockCache, Ops], BlockGrads]


class Update(NamedTuple):
    """One optimizer step to take: everything under official names."""

    params: Arrays
    grads: Arrays
    velocities: Arrays
    lr: float
    recipe: Recipe
    factors: Callable[[str], Factors]


def plain_update(update: Update) -> SgdStep:
    """SGD as the recipe says."""
    recipe = update.recipe
    return sgd_step(
        update.params,
        update.grads,
        update.velocities,
        lr=update.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        factors=update.factors,
    )


def plain_backward(spec: BlockSpec, grad: Array, cache: BlockCache, ops: Ops) -> BlockGrads:
    """A block's backward pass in training mode."""
    return train_block_backward(spec, grad, cache, ops=ops, training=True)


@dataclass(frozen=True)
class Setup:
    """How a port trains. The defaults are right; a bug is a function from setup to setup.

    Attributes
    ----------
    params : mapping
        Canonical names, float64.
    ops, backward, training
        What layers compute with; if `at` is given only those named there, all others with `base`.
    aux_ops : callable, optional
        Changes the operators of the auxiliary heads; `aux` switches those off.
    grads_map : callable
        Official name -> gradient, as they come out of a step, to what the optimizer is given.
    """

    arch: Network
    params: Mapping[str, Array]
    x: Array
    labels: Array
    recipe: Recipe
    eps: float
    bn_momentum: float
    base: Ops = REFERENCE
    ops: Ops = REFERENCE
    backward: Backward = plain_backward
    training: bool = True
    at: frozenset[str] | None = None
    aux: bool = True
    aux_ops: Callable[[Ops], Ops] | None = None
    grads_map: Callable[[Arrays], Arrays] | None = None
    update: Callable[[Update], SgdStep] = plain_update
    factors: Callable[[str], Factors] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def ops_at(self, layer: str) -> Ops:
        """The operators of one layer."""
        return self.ops if self.at is None or layer in self.at else self.base

    def backward_at(self, layer: str) -> Backward:
        """The backward pass of one block."""
        return self.backward if self.at is None or layer in self.at else plain_backward

    def training_at(self, layer: str) -> bool:
        """Whether a block's batch norms use the batch's statistics."""
        return self.training or not (self.at is None or layer in self.at)


def right_setup(model: Model, x: Array, labels: Array, recipe: Recipe) -> Setup:
    """The reference's own training, in float64."""
    require_branches(model, "a training step")
    require_image_batch(model.arch, x)
    return Setup(
        arch=model.arch,
        params={name: _widened(array) for name, array in model.params.items()},
        x=np.asarray(x, np.float64),
        labels=np.asarray(labels),
        recipe=recipe,
        eps=model.eps,
        bn_momentum=model.momentum,
        names=official_dialect(model.arch).names(param_shapes(model.arch, "train")),
    )


def run(setup: Setup, *, first_only: bool = False) -> Arrays:
    """Train as `setup` says and return every number.

    Returns
    -------
    dict
        ``loss``, ``logits``, ``batch_mean/<bn>``, ``batch_var/<bn>`` (biased), ``grad/<name>`` and
        ``stat/<name>`` (running statistics) of the first step; ``losses`` (steps,) and
        ``after/<name>`` after the last one, unless `first_only`.
    """
    first: Arrays = {}
    losses: list[float] = []
    params, velocities = dict(setup.params), Arrays()
    for lr in setup.recipe.lrs:
        step = one_step(setup, params)
        grads = {setup.names[name]: grad for name, grad in step.grads.items()}
        stats = {setup.names[name]: stat for name, stat in step.stats.items()}
        if not first:
            first = _recorded(setup, step, grads, stats)
            if first_only:
                return first
        losses.append(float(step.loss))
        taken = setup.update(
            Update(
                {setup.names[name]: array for name, array in params.items()},
                grads if setup.grads_map is None else setup.grads_map(grads),
                velocities,
                lr,
                setup.recipe,
                setup.factors or setup.recipe.factors,
            )
        )
        after, velocities = taken.params | stats, taken.velocities
        params = {name: after[official] for name, official in setup.names.items()}
    first["losses"] = np.array(losses)
    return first | {f"after/{setup.names[name]}": array for name, array in params.items()}


class Step(NamedTuple):
    """One step's numbers under canonical names."""

    loss: Any
    logits: Array
    grads: Arrays
    stats: Arrays
    batch: dict[str, BatchStats]


def one_step(setup: Setup, params: Mapping[str, Array]) -> Step:
    """Forward, loss and backward."""
    caches: dict[str, BlockCache] = {}
    aux: dict[str, Any] = {}
    batch: dict[str, BatchStats] = {}
    aux_loss: Any = 0
    heads = {head.after: head for head in setup.arch.aux_heads} if setup.aux else {}
    plain = setup.ops_at("linear")
    aux_ops = plain if setup.aux_ops is None else setup.aux_ops(plain)
    x = setup.x
    for spec in setup.arch.blocks:
        ops, training = setup.ops_at(spec.name), setup.training_at(spec.name)
        x, cache = train_block_forward(spec, params, x, ops=ops, eps=setup.eps, training=training)
        caches[spec.name] = cache
        batch |= {f"{spec.name}.{branch}.bn": s for branch, s in cache.stats.items()}
        if head := heads.get(spec.name):
            loss, aux[spec.name], batch[f"{head.name}.bn"] = aux_forward(
                head,
                params,
                x,
                setup.labels,
                ops=aux_ops,
                eps=setup.eps,
                label_smoothing=setup.recipe.label_smoothing,
            )
            aux_loss = aux_loss + AUX_WEIGHT * loss
    pooled, pool = plain.global_avg_pool_forward(x)
    logits, linear = plain.linear_forward(pooled, params["linear.weight"], params["linear.bias"])
    loss, loss_cache = plain.softmax_cross_entropy_forward(
        logits, setup.labels, label_smoothing=setup.recipe.label_smoothing
    )
    grads: Arrays = {}
    back = plain.linear_backward(plain.softmax_cross_entropy_backward(loss_cache), linear)
    grads["linear.weight"], grads["linear.bias"] = back.grad_weight, back.grad_bias
    grad = plain.global_avg_pool_backward(back.grad_x, pool)
    for spec in reversed(setup.arch.blocks):
        if spec.name in aux:
            grad = grad + aux_backward(heads[spec.name], aux[spec.name], grads, ops=aux_ops)
        block = setup.backward_at(spec.name)(
            spec, grad, caches.pop(spec.name), setup.ops_at(spec.name)
        )
        grads |= {f"{spec.name}.{part}": value for part, value in block.params.items()}
        grad = block.x
    return Step(loss + aux_loss, logits, grads, _running(setup, params, batch), batch)


def _running(setup: Setup, params: Mapping[str, Array], batch: Mapping[str, BatchStats]) -> Arrays:
    """Running statistics after the step; a batch norm that saw none keeps its own."""
    after: Arrays = {
        name: array
        for name, array in params.items()
        if name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))
    }
    for bn, seen in batch.items():
        ops = setup.ops_at(bn.rsplit(".branch_", 1)[0])
        old = params[f"{bn}.running_mean"], params[f"{bn}.running_var"]
        after[f"{bn}.running_mean"], after[f"{bn}.running_var"] = ops.update_running_stats(
            *old, seen.mean, seen.var, momentum=setup.bn_momentum, count=seen.pixels
        )
        after[f"{bn}.num_batches_tracked"] = params[f"{bn}.num_batches_tracked"] + 1
    return after


def _recorded(setup: Setup, step: Step, grads: Arrays, stats: Arrays) -> Arrays:
    """The first step's numbers under the bundle's names."""
    official = {bn: setup.names[f"{bn}.gamma"].removesuffix(".weight") for bn in step.batch}
    return {
        "loss": np.asarray(step.loss, np.float64),
        "logits": step.logits,
        **{f"batch_mean/{official[bn]}": seen.mean for bn, seen in step.batch.items()},
        **{f"batch_var/{official[bn]}": seen.var for bn, seen in step.batch.items()},
        **{f"grad/{name}": grad for name, grad in grads.items()},
        **{f"stat/{name}": stat for name, stat in stats.items()},
    }


def with_steps(setup: Setup, lrs: tuple[float, ...]) -> Setup:
    """The same with other learning rates, one a step."""
    return replace(setup, recipe=replace(setup.recipe, lrs=lrs))


def _widened(array: Array) -> Array:
    return np.asarray(array, np.float64) if array.dtype.kind == "f" else np.asarray(array)
