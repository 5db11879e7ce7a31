"""From gradients to weights: momentum, weight decay, learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.training.bugs.wrong_setup import TrainingSite, TrainingVariants, with_recipe
from repvgg_ref.oracle.training.run import Arrays, Update, plain_update
from repvgg_ref.train.decay import DECAY_RULES
from repvgg_ref.train.sgd import Factors, SgdStep


@bug(
    "weight-decay-on-batch-norm",
    says="weight decay is applied to {detail}",
    advice="decay what the recipe's rule says: kernels alone, or under 'segmentation' all arrays",
    scope="network",
)
def _weight_decay_on_batch_norm(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    right = setup.factors_in_use
    norms = {setup.names[ours] for ours in setup.names if ours.endswith((".gamma", ".beta"))}
    for detail, decays in {
        "every array, batch norm and biases included": lambda name: True,
        "batch norm's gamma and beta": lambda name: name in norms,
        "gamma (every array called weight)": lambda name: name.endswith(".weight"),
        "the biases of linear layers and SE": lambda name: (
            name.endswith(".bias") and name not in norms
        ),
    }.items():

        def factors(name: str, decays: Callable[[str], bool] = decays) -> Factors:
            return right(name)._replace(decay=1.0) if decays(name) else right(name)

        if any(factors(name) != right(name) for name in setup.names.values()):
            yield Variant(replace(setup, factors=factors), detail=detail)
    for rule in DECAY_RULES:
        if rule != setup.recipe.decay:
            other = setup.factors_by(rule)
            yield Variant(replace(setup, factors=other), detail=f"what the rule '{rule}' says")
            if setup.recipe.pixels:  # where the rules differ in learning rates, too
                only = partial(_decaying, right, other)
                detail = f"what the rule '{rule}' lets decay, learning rates as they should be"
                yield Variant(replace(setup, factors=only), detail=detail)


def _decaying(
    right: Callable[[str], Factors], other: Callable[[str], Factors], name: str
) -> Factors:
    """The right learning rate with another rule's decay."""
    return right(name)._replace(decay=other(name).decay)


@bug(
    "weight-decay-missing",
    says="there is no weight decay",
    advice="add weight_decay * w to the gradient of the kernels",
    scope="network",
)
def _weight_decay_missing(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if setup.recipe.weight_decay:
        yield Variant(with_recipe(setup, weight_decay=0.0))


@bug(
    "weight-decay-decoupled",
    says="weight decay is decoupled: it shrinks the weights beside the momentum, not through it",
    advice="add weight_decay * w to the gradient before the velocity (SGD, not SGDW)",
    scope="network",
)
def _weight_decay_decoupled(site: TrainingSite) -> TrainingVariants:
    setup = site.program

    def update(step: Update) -> SgdStep:
        decay, factors = step.recipe.weight_decay, step.factors
        plain = plain_update(step._replace(recipe=replace(step.recipe, weight_decay=0.0)))
        params = dict(plain.params)
        for name in step.grads:
            factor = factors(name)
            params[name] = (
                params[name] - step.lr * factor.lr * decay * factor.decay * step.params[name]
            )
        return SgdStep(params, plain.velocities)

    if setup.recipe.weight_decay:
        yield Variant(replace(setup, update=update))


@bug(
    "weight-decay-factor",
    says="weight decay is {parameter:g} times the recipe's",
    advice="the gradient gets weight_decay * w, without a half or a two",
    scope="network",
)
def _weight_decay_factor(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    for factor in (2.0, 0.5, 0.1, 10.0) if setup.recipe.weight_decay else ():
        decay = factor * setup.recipe.weight_decay
        yield Variant(with_recipe(setup, weight_decay=decay), parameter=factor)


@bug(
    "nesterov",
    says="Nesterov's momentum is {detail}",
    advice="w -= lr * (d + momentum * v) with Nesterov, lr * v without",
    scope="network",
)
def _nesterov(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    on = setup.recipe.nesterov
    if setup.recipe.momentum:
        yield Variant(
            with_recipe(setup, nesterov=not on),
            detail="off but wanted" if on else "on but not wanted",
        )


@bug(
    "momentum-missing",
    says="there is no momentum",
    advice="v = momentum * v + d",
    scope="network",
)
def _momentum_missing(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if setup.recipe.momentum:
        yield Variant(with_recipe(setup, momentum=0.0, nesterov=False))


@bug(
    "momentum-value",
    says="momentum is {parameter:g}, the recipe's another",
    advice="set the optimizer's momentum to the recipe's",
    scope="network",
)
def _momentum_value(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    for momentum in (0.9, 0.5, 0.95, 0.99, 0.1):
        if momentum != setup.recipe.momentum:
            yield Variant(with_recipe(setup, momentum=momentum), parameter=momentum)


@bug(
    "momentum-dampened",
    says="the velocity takes only {detail} of the gradient (dampening)",
    advice="v = momentum * v + d, dampening 0",
    scope="network",
)
def _momentum_dampened(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    m = setup.recipe.momentum

    def dampened(step: Update, first: float) -> SgdStep:
        """The same with gradients and decay times 1 - m, or `first` before there is a velocity."""
        scale = 1 - m if step.velocities else first
        scaled = {n: scale * (g + _decay(step, n)) for n, g in step.grads.items()}
        flat = replace(step.recipe, weight_decay=0.0, nesterov=False)
        return plain_update(step._replace(grads=scaled, recipe=flat))

    # torch leaves the first step alone
    for detail, first in {
        "1 - momentum, after the first step": 1.0,
        "1 - momentum": 1 - m,
    }.items():
        if m:
            yield Variant(replace(setup, update=partial(dampened, first=first)), detail=detail)


def _decay(step: Update, name: str) -> np.ndarray | float:
    factor = step.recipe.weight_decay * step.factors(name).decay
    return factor * step.params[name] if factor else 0.0


@bug(
    "velocity-holds-learning-rate",
    says="the learning rate is inside the velocity: v = momentum * v + lr * d, w -= v",
    advice="v = momentum * v + d, w -= lr * v: they differ as soon as lr changes",
    scope="network",
)
def _velocity_holds_learning_rate(site: TrainingSite) -> TrainingVariants:
    setup = site.program

    def update(step: Update) -> SgdStep:
        scaled = {n: step.lr * (g + _decay(step, n)) for n, g in step.grads.items()}
        flat = replace(step.recipe, weight_decay=0.0)
        return plain_update(step._replace(grads=scaled, lr=1.0, recipe=flat))

    if setup.recipe.momentum and len(set(setup.recipe.lrs)) > 1:
        yield Variant(replace(setup, update=update))


@bug(
    "gradients-accumulate",
    says="gradients add up from step to step",
    advice="set the gradients to zero before each backward pass",
    scope="network",
)
def _gradients_accumulate(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    right = setup.update

    def update(step: Update) -> SgdStep:
        # The sum so far travels among the velocities, under names of its own.
        so_far = {n[4:]: v for n, v in step.velocities.items() if n.startswith("sum:")}
        own = {n: v for n, v in step.velocities.items() if not n.startswith("sum:")}
        total = {n: g + so_far.get(n, 0) for n, g in step.grads.items()}
        taken = right(step._replace(grads=total, velocities=own))
        return SgdStep(taken.params, taken.velocities | {f"sum:{n}": g for n, g in total.items()})

    if len(setup.recipe.lrs) > 1:
        yield Variant(replace(setup, update=update))


@bug(
    "steps-miscounted",
    says="these are the weights after {parameter:.0f} steps",
    advice="dump the weights after as many steps as the manifest says",
    scope="network",
)
def _steps_miscounted(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    lrs = setup.recipe.lrs
    for count in range(1, len(lrs)):
        yield Variant(with_recipe(setup, lrs=lrs[:count]), parameter=float(count))
    yield Variant(with_recipe(setup, lrs=(*lrs, lrs[-1])), parameter=float(len(lrs) + 1))


@bug(
    "gradients-clipped",
    says="gradients are clipped to norm {parameter:g} before the update",
    advice="no clipping in this recipe",
    scope="network",
)
def _gradients_clipped(site: TrainingSite) -> TrainingVariants:
    for limit in (1.0, 0.1, 5.0):

        def clipped(grads: Arrays, limit: float = limit) -> Arrays:
            norm = float(np.sqrt(sum(float((g**2).sum()) for g in grads.values())))
            return {n: g * min(1.0, limit / max(norm, 1e-300)) for n, g in grads.items()}

        yield Variant(replace(site.program, grads_map=clipped), parameter=limit)


@bug(
    "other-optimizer",
    says="the optimizer is not SGD but {detail}",
    advice="use SGD with momentum and the recipe's numbers",
    scope="network",
)
def _other_optimizer(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    recipe = setup.recipe
    kinds: tuple[tuple[str, Callable[[str], float]], ...] = (
        ("", lambda _: 1.0),
        (" that decays kernels only", lambda name: float(setup.factors_in_use(name).decay)),
    )
    for said, decays in kinds:
        for detail, coupled, decay in (
            ("Adam", True, recipe.weight_decay),
            ("AdamW", False, recipe.weight_decay),
            ("AdamW with a decay of 0.01", False, 0.01),
        ):
            adam = partial(_adam, decay=decay, coupled=coupled, decays=decays)
            yield Variant(replace(setup, update=adam), detail=detail + said)


def _adam(step: Update, *, decay: float, coupled: bool, decays: Callable[[str], float]) -> SgdStep:
    """Adam with its usual numbers; moments and the count travel among the velocities."""
    count = float(step.velocities.get("count", np.zeros(()))) + 1
    params, moments = dict(step.params), {"count": np.asarray(count)}
    for name, g in step.grads.items():
        w, shrink = step.params[name], decay * decays(name)
        d = g + shrink * w if coupled else g
        first = 0.9 * step.velocities.get(f"first:{name}", 0.0) + 0.1 * d
        second = 0.999 * step.velocities.get(f"second:{name}", 0.0) + 0.001 * d**2
        moments |= {f"first:{name}": first, f"second:{name}": second}
        size = np.sqrt(second / (1 - 0.999**count)) + 1e-8
        kept = w if coupled else w * (1 - step.lr * shrink)
        params[name] = kept - step.lr * first / (1 - 0.9**count) / size
    return SgdStep(params, moments)


@bug(
    "update-sign",
    says="the step goes up the gradient instead of down",
    advice="w -= lr * v",
    scope="network",
)
def _update_sign(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    yield Variant(with_recipe(setup, lrs=tuple(-lr for lr in setup.recipe.lrs)))
