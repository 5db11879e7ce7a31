"""The training steps, right or wrong: a `Setup` says how, `run` gives every number of them.

A step is `models.step` and an update is `train.sgd`. A bug is another network, whose nodes compute
something else, another table of operators, another recipe or another update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.arguments import training_batch
from repvgg_ref.models.dense import ChannelDropout
from repvgg_ref.models.graph import Graph, Network
from repvgg_ref.models.layers import Pass
from repvgg_ref.models.names import official_names, role_names
from repvgg_ref.models.network import Model, require_branches
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.models.step import Step, take_step
from repvgg_ref.ops import REFERENCE, Ops
from repvgg_ref.oracle.training.recipe import Recipe
from repvgg_ref.train.decay import DECAY_RULES
from repvgg_ref.train.sgd import Factors, SgdStep, sgd_step

Arrays = dict[str, Array]


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


@dataclass(frozen=True)
class Setup:
    """How a port trains. The defaults are right; a bug is a function from setup to setup.

    Attributes
    ----------
    params : mapping
        Canonical names, float64.
    names : mapping
        Canonical name -> official name.
    roles : mapping
        Official name -> the name by which rules tell kernels from the rest (`role_names`).
    ops, training
        What layers compute with, and whether batch norms take the batch's statistics. If `at` is
        given this holds for the blocks named there, and all else is right and by `base`.
    grads_map : callable
        Official name -> gradient, as they come out of a step, to what the optimizer is given.
    """

    network: Network
    params: Mapping[str, Array]
    x: Array
    labels: Array
    recipe: Recipe
    eps: float
    bn_momentum: float
    names: Mapping[str, str]
    base: Ops = REFERENCE
    ops: Ops = REFERENCE
    training: bool = True
    at: frozenset[str] | None = None
    grads_map: Callable[[Arrays], Arrays] | None = None
    update: Callable[[Update], SgdStep] = plain_update
    factors: Callable[[str], Factors] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    def factors_by(self, rule: str) -> Callable[[str], Factors]:
        """What a rule of `DECAY_RULES` says of official names.

        Where published code calls batch norms ``bn1`` or ``downsample.1``, the block says what an
        array is, and not its name.
        """
        return lambda name: DECAY_RULES[rule](self.roles.get(name, name))

    @property
    def factors_in_use(self) -> Callable[[str], Factors]:
        """Of learning rate and decay, by official name."""
        return self.factors or self.factors_by(self.recipe.decay)

    def is_at(self, layer: str) -> bool:
        """Whether a bug sits in this layer."""
        return self.at is None or layer in self.at


@dataclass(frozen=True, eq=False)
class KeptChannels(ChannelDropout):
    """Dropout that keeps the channels it is told to, (N, C): the same in every step and port."""

    kept: Array

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.channel_dropout`; `run` has no say in it."""
        return run.ops.channel_dropout_forward(x[0], run.ops.from_host(self.kept), rate=self.rate)


def right_setup(
    model: Model,
    x: Array,
    labels: Array,
    recipe: Recipe,
    kept: Mapping[str, Array] | None = None,
) -> Setup:
    """The reference's own training, in float64.

    `kept` says which channels a dropout keeps: node -> bool (N, C); others drop none.

    Raises
    ------
    NotFusibleError
        If the model has no branches.
    ShapeError
        If the images do not fit, or a batch norm would see one value a channel.
    """
    require_branches(model, "a training step")
    x = training_batch(model.arch, x)
    names = official_names(model.arch, "train")
    return Setup(
        network=_keeping(model.arch, kept or {}),
        params={name: _widened(array) for name, array in model.params.items()},
        x=np.asarray(x, np.float64),
        labels=np.asarray(labels),
        recipe=recipe,
        eps=model.eps,
        bn_momentum=model.momentum,
        names=names,
        roles={names[ours]: role for ours, role in role_names(model.arch).items()},
    )


def _keeping(network: Network, kept: Mapping[str, Array]) -> Network:
    """The network whose dropouts keep these channels."""
    if not kept:
        return network
    assert isinstance(network, Graph)
    nodes = (
        replace(node, op=KeptChannels(node.op.rate, kept[node.name]))
        if isinstance(node.op, ChannelDropout) and node.name in kept
        else node
        for node in network.nodes
    )
    return replace(network, nodes=tuple(nodes))


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
    velocities: Arrays = {}
    weights = {official: setup.params[ours] for ours, official in setup.names.items()}
    for lr in setup.recipe.lrs:
        step = _step(setup, {ours: weights[official] for ours, official in setup.names.items()})
        grads = {setup.names[ours]: grad for ours, grad in step.result.grads.items()}
        stats = {  # a batch norm that saw no batch keeps its own
            official: step.result.stats.get(ours, weights[official])
            for ours, official in setup.names.items()
            if not is_trainable(ours)
        }
        if not first:
            first = _recorded(setup, step, grads, stats)
            if first_only:
                return first
        losses.append(float(step.result.loss))
        given = grads if setup.grads_map is None else setup.grads_map(grads)
        update = Update(weights, given, velocities, lr, setup.recipe, setup.factors_in_use)
        taken = setup.update(update)
        weights, velocities = taken.params | stats, taken.velocities
    after = {f"after/{name}": array for name, array in weights.items()}
    return first | {"losses": np.array(losses)} | after


def _step(setup: Setup, params: Mapping[str, Array]) -> Step:
    """Forward, loss and backward."""
    momentum = setup.bn_momentum
    right = Pass(params, setup.base, setup.eps, training=True, momentum=momentum)
    wrong = replace(right, ops=setup.ops, training=setup.training)
    return take_step(
        setup.network,
        setup.x,
        setup.labels,
        right,
        momentum=momentum,
        label_smoothing=setup.recipe.label_smoothing,
        at=lambda node: wrong if setup.is_at(node.name) else right,
    )


def _recorded(setup: Setup, step: Step, grads: Arrays, stats: Arrays) -> Arrays:
    """The first step's numbers under the bundle's names."""
    official = {bn: setup.names[f"{bn}.gamma"].removesuffix(".weight") for bn in step.batch}
    return {
        "loss": np.asarray(step.result.loss, np.float64),
        "logits": step.result.logits,
        **{f"batch_mean/{official[bn]}": seen.mean for bn, seen in step.batch.items()},
        **{f"batch_var/{official[bn]}": seen.var for bn, seen in step.batch.items()},
        **{f"grad/{name}": grad for name, grad in grads.items()},
        **{f"stat/{name}": stat for name, stat in stats.items()},
    }


def _widened(array: Array) -> Array:
    return np.asarray(array, np.float64) if array.dtype.kind == "f" else np.asarray(array)
