"""What a training script sets by a number: each is estimated, not looked up.

A `Setting` says what the reference's value is and gives the setup for any other. Together they are
the parameters that `fit` estimates from a dump; bugs that are no matter of a number stand in
`bugs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.bugs.rates import with_poly, with_rate_of_new
from repvgg_ref.oracle.training.bugs.wrong_setup import (
    with_loss,
    with_nodes,
    with_ops,
    with_recipe,
)
from repvgg_ref.oracle.training.run import KeptChannels, Setup, Update
from repvgg_ref.train.sgd import Factors, SgdStep

_LEAST = 1e-300  # of what a logarithm is taken


@dataclass(frozen=True)
class Setting:
    """One number that a port may have set otherwise.

    Attributes
    ----------
    bug : str
        What the disagreement is called.
    says : str
        A sentence about the candidate; ``{value}``, ``{error}`` (its standard error) and
        ``{right}`` are filled in.
    right : callable
        From a setup to the reference's value; None if the setup has no such thing.
    at : callable
        From a setup and a value to the setup that has it.
    late : bool
        Whether it changes nothing in the first step.
    unit : float
        The size of a change that is neither large nor small, where the right value is zero.
    least : float
        The smallest value that can be.
    at_zero : str
        What the disagreement is called where the value is zero; empty if it has no name of its own.
    """

    bug: str
    says: str
    advice: str
    right: Callable[[Setup], float | None]
    at: Callable[[Setup, float], Setup]
    late: bool = False
    unit: float = 1.0
    least: float = -np.inf
    at_zero: str = ""


# ------------------------------------------------------------------------ the first step


def _with_loss(setup: Setup, loss: float, gradient: float) -> Setup:
    return with_loss(setup, lambda found: loss * found, lambda found: gradient * found)


def _with_var_share(setup: Setup, share: float) -> Setup:
    """The running variance takes ``var * (1 + share / (n - 1))``: 1 is unbiased, 0 biased."""
    right = setup.ops.update_running_stats

    def changed(old_mean: Array, old_var: Array, mean: Array, var: Array, **how: Any) -> Any:
        n = how["count"]
        return right(old_mean, old_var, mean, var * (1 + share / (n - 1)) * (n - 1) / n, **how)

    return with_ops(setup, update_running_stats=changed)


def _aux_weight(setup: Setup) -> float | None:
    weights = [node.loss_weight for node in setup.network.nodes if node.training_only]
    return next((weight for weight in weights if weight), None)


def _with_aux_weight(setup: Setup, weight: float) -> Setup:
    return with_nodes(
        setup,
        lambda node: (
            replace(node, loss_weight=weight) if node.training_only and node.loss_weight else node
        ),
    )


def _dropout_rate(setup: Setup) -> float | None:
    rates = {n.op.rate for n in setup.network.nodes if isinstance(n.op, KeptChannels)}
    return rates.pop() if len(rates) == 1 else None


def _with_dropout_rate(setup: Setup, rate: float) -> Setup:
    return with_nodes(
        setup,
        lambda node: (
            replace(node, op=replace(node.op, rate=rate))
            if isinstance(node.op, KeptChannels)
            else node
        ),
    )


def _with_smoothing(setup: Setup, share: float) -> Setup:
    """The setup whose targets are ``(1 - share) * one_hot + share / classes``."""
    if not setup.recipe.pixels:
        return with_recipe(setup, label_smoothing=share)
    forward = setup.ops.pixel_cross_entropy_forward
    backward = setup.ops.pixel_cross_entropy_backward

    def loss_of(logits: Array, labels: Array, *, ignored: int) -> tuple[Array, Any]:
        loss, kept = forward(logits, labels, ignored=ignored)
        logs = np.log(np.maximum(kept.probabilities, _LEAST))
        uniform = -(kept.weights * logs.mean(axis=1, keepdims=True)).sum()
        return (1 - share) * loss + share * uniform, kept

    def gradient_of(kept: Any) -> Array:
        uniform = kept.weights * (kept.probabilities - 1 / kept.probabilities.shape[1])
        return np.asarray((1 - share) * backward(kept) + share * uniform)

    return with_ops(
        setup, pixel_cross_entropy_forward=loss_of, pixel_cross_entropy_backward=gradient_of
    )


# ------------------------------------------------------------------------- the optimizer


def _when(value: float, there: bool) -> float | None:
    return value if there else None


def _belongs(setup: Setup, part: str) -> Callable[[str], bool]:
    """Whether an official name is a gamma, a beta, or another bias."""
    ours = {official: name for name, official in setup.names.items()}
    ends = {"gamma": (".gamma",), "beta": (".beta",), "bias": (".bias",)}[part]
    return lambda official: ours[official].endswith(ends)


def _decay_of(part: str) -> Callable[[Setup], float | None]:
    def right(setup: Setup) -> float | None:
        names = [name for name in setup.names.values() if _belongs(setup, part)(name)]
        decays = {float(setup.factors_in_use(name).decay) for name in names}
        return decays.pop() * setup.recipe.weight_decay if len(decays) == 1 else None

    return lambda setup: right(setup) if setup.recipe.weight_decay else None


def _with_decay_of(part: str) -> Callable[[Setup, float], Setup]:
    def at(setup: Setup, decay: float) -> Setup:
        belongs, before = _belongs(setup, part), setup.factors_in_use
        factor = decay / setup.recipe.weight_decay

        def factors(name: str) -> Factors:
            return before(name)._replace(decay=factor) if belongs(name) else before(name)

        return replace(setup, factors=factors)

    return at


def _with_bias_rate(setup: Setup, rate: float) -> Setup:
    before = setup.factors_in_use

    def factors(name: str) -> Factors:
        found = before(name)
        return found._replace(lr=found.lr * rate) if name.endswith(".bias") else found

    return replace(setup, factors=factors)


def _with_fall(setup: Setup, fall: float) -> Setup:
    """Learning rates that fall from the first one by another factor a step."""
    lrs = setup.recipe.lrs
    return with_recipe(setup, lrs=tuple(lr * fall**i for i, lr in enumerate(lrs)))


def _with_dampening(setup: Setup, dampening: float) -> Setup:
    """``v = momentum * v + (1 - dampening) * d`` from the second step on, as torch has it."""
    right = setup.update

    def update(step: Update) -> SgdStep:
        if not step.velocities or dampening == 0:
            return right(step)
        # The same with the velocities enlarged for the step: v / (1 - dampening) is undamped.
        share = 1 - dampening
        grown = {name: v / share for name, v in step.velocities.items()}
        taken = right(step._replace(velocities=grown, lr=step.lr * share))
        return SgdStep(taken.params, {name: v * share for name, v in taken.velocities.items()})

    return replace(setup, update=update)


def _is_scheduled(setup: Setup) -> bool:
    return len(setup.recipe.lrs) > 1


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "bn-eps",
        "batch norm adds eps = {value} in training, the reference {right}",
        "set eps of every batch norm to the reference's (official code: 1e-5)",
        lambda setup: setup.eps if setup.eps > 0 else None,
        lambda setup, eps: replace(setup, eps=eps),
        unit=1e-6,
        least=0.0,
    ),
    Setting(
        "label-smoothing",
        "label smoothing is {value}, the recipe's is {right}",
        "target = (1 - s) * one_hot + s / classes, with the recipe's s",
        lambda setup: setup.recipe.label_smoothing,
        _with_smoothing,
        unit=0.1,
        least=0.0,
    ),
    Setting(
        "loss-scaled",
        "the loss and all gradients are {value} times the right ones",
        "undo the loss scaling before the gradients are used, and do not weigh the loss",
        lambda setup: 1.0,
        lambda setup, scale: _with_loss(setup, scale, scale),
        least=1e-3,
    ),
    Setting(
        "gradients-scaled",
        "every gradient is {value} times the right one, the loss is not",
        "divide by what the loss was multiplied by: loss scaling, or accumulation over batches",
        lambda setup: 1.0,
        lambda setup, scale: _with_loss(setup, 1.0, scale),
        least=1e-3,
    ),
    Setting(
        "aux-heads",
        "the losses of the auxiliary heads weigh {value}, the reference's {right}",
        "loss = CE(main) + {right:g} * sum of CE(aux), their gradients included",
        _aux_weight,
        _with_aux_weight,
        least=1e-3,
    ),
    Setting(
        "dropout-wrong",
        "dropout divides what it keeps by 1 - {value}, the reference by 1 - {right}",
        "whole channels times 0 or 1 / (1 - {right:g})",
        _dropout_rate,
        _with_dropout_rate,
        unit=0.1,
    ),
    Setting(
        "running-momentum-value",
        "the running averages take {value} of each batch, the reference's {right}",
        "set the batch norms' momentum to the reference's (torch and the official code: 0.1)",
        lambda setup: setup.bn_momentum,
        lambda setup, momentum: replace(setup, bn_momentum=momentum),
    ),
    Setting(
        "running-var-correction",
        "running_var takes the batch's variance times 1 + {value} / (n - 1)",
        "running_var takes var * n / (n - 1), that is {right:g} in place of it",
        lambda setup: 1.0,
        _with_var_share,
        at_zero="running-var-biased",
    ),
    Setting(
        "momentum-value",
        "momentum is {value}, the recipe's is {right}",
        "set the optimizer's momentum to the recipe's",
        lambda setup: _when(setup.recipe.momentum, _is_scheduled(setup)),
        lambda setup, momentum: with_recipe(setup, momentum=momentum),
        late=True,
        at_zero="momentum-missing",
    ),
    Setting(
        "momentum-dampened",
        "the velocity takes only 1 - {value} of the gradient (dampening)",
        "v = momentum * v + d, dampening {right:g}",
        lambda setup: _when(0.0, _is_scheduled(setup)),
        _with_dampening,
        late=True,
        unit=0.1,
    ),
    Setting(
        "weight-decay-factor",
        "weight decay is {value}, the recipe's is {right}",
        "the gradient gets weight_decay * w, without a half or a two",
        lambda setup: setup.recipe.weight_decay,
        lambda setup, decay: with_recipe(setup, weight_decay=decay),
        late=True,
        at_zero="weight-decay-missing",
        unit=1e-4,
    ),
    *(
        Setting(
            "weight-decay-on-batch-norm",
            "weight decay of " + called + " is {value}, the recipe's there is {right}",
            "decay what the recipe's rule says, and as much",
            _decay_of(part),
            _with_decay_of(part),
            late=True,
            unit=1e-4,
        )
        for part, called in (
            ("gamma", "batch norm's gamma"),
            ("beta", "batch norm's beta"),
            ("bias", "biases"),
        )
    ),
    Setting(
        "learning-rate-factor",
        "learning rates are {value} times the recipe's",
        "one rate a step, as the manifest lists them",
        lambda setup: 1.0,
        lambda setup, f: with_recipe(setup, lrs=tuple(f * lr for lr in setup.recipe.lrs)),
        late=True,
        least=1e-3,
    ),
    Setting(
        "learning-rate-schedule",
        "the learning rate falls {value} times as fast as the recipe's from step to step",
        "one rate a step, as the manifest lists them",
        lambda setup: _when(1.0, _is_scheduled(setup)),
        _with_fall,
        late=True,
        least=1e-3,
    ),
    Setting(
        "learning-rate-of-biases",
        "biases and betas learn {value} times as fast as the recipe says",
        "the same rate for every array of a module",
        lambda setup: 1.0,
        _with_bias_rate,
        late=True,
        least=1e-3,
    ),
    Setting(
        "learning-rate-of-new-modules",
        "what stands behind the backbone learns {value} times as fast, by the recipe {right}",
        "two groups: lr for layer0 ... layer4, {right:g} lr for ppm, cls and aux",
        lambda setup: _when(10.0, setup.recipe.decay == "segmentation"),
        with_rate_of_new,
        late=True,
        least=1e-3,
    ),
    Setting(
        "poly-schedule",
        "the learning rate falls by the power {value}, the recipe's is {right}",
        "lr = lr_0 * (1 - i / steps)^{right:g}, i counted from 0 and in iterations",
        lambda setup: setup.recipe.poly_power if _is_scheduled(setup) else None,
        with_poly,
        late=True,
    ),
)
