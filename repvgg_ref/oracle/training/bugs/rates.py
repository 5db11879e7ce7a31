"""Learning rates: which step, and which array, gets which."""

from __future__ import annotations

from dataclasses import replace

from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.training.bugs.wrong_setup import TrainingSite, TrainingVariants, with_recipe
from repvgg_ref.oracle.training.recipe import poly_rates
from repvgg_ref.oracle.training.run import Setup
from repvgg_ref.train.sgd import Factors


@bug(
    "learning-rates",
    says="the learning rates are not the recipe's: {detail}",
    advice="one rate a step, as the manifest lists them, and the same for every array of a group",
    scope="network",
)
def _learning_rates(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    lrs = setup.recipe.lrs
    for detail, others in {
        "the first one in every step": (lrs[0],) * len(lrs),
        "shifted by one step": (*lrs[1:], lrs[-1]),
        "late by one step, zero in the first": (0.0, *lrs[:-1]),
        "in reverse": lrs[::-1],
        "ten times as high": tuple(10 * lr for lr in lrs),
        "a tenth": tuple(lr / 10 for lr in lrs),
        "all zero: the weights do not move": (0.0,) * len(lrs),
    }.items():
        if others != lrs:
            yield Variant(with_recipe(setup, lrs=others), detail=detail)
    right = setup.factors_in_use
    faster = replace(
        setup, factors=lambda n: right(n)._replace(lr=2.0) if "bias" in n else right(n)
    )
    yield Variant(faster, detail="biases learn twice as fast")


def with_rate_of_new(setup: Setup, rate: float, modules: tuple[str, ...] = ()) -> Setup:
    """The setup whose new modules, all or some, learn so many times as fast as the backbone."""
    right = setup.factors_in_use

    def factors(name: str) -> Factors:
        found = right(name)
        is_meant = name.startswith(modules) if modules else found.lr != 1
        return found._replace(lr=rate) if is_meant else found

    return replace(setup, factors=factors)


def with_poly(setup: Setup, power: float) -> Setup:
    """The setup whose learning rates fall by another power."""
    lrs = setup.recipe.lrs
    return with_recipe(setup, lrs=poly_rates(lrs[0], len(lrs), power), poly_power=power)


@bug(
    "learning-rate-of-new-modules",
    says="the learning rates of the two groups are wrong: {detail}",
    advice="lr for layer0 ... layer4, ten times as much for ppm, cls and aux",
    scope="network",
)
def _learning_rate_of_new_modules(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    if setup.recipe.decay != "segmentation":
        return
    yield Variant(with_rate_of_new(setup, 1.0), detail="all learn at the backbone's rate")
    right = setup.factors_in_use
    fast = replace(setup, factors=lambda name: right(name)._replace(lr=10.0))
    yield Variant(fast, detail="the backbone learns ten times as fast, too")
    for module in ("ppm.", "cls.", "aux."):
        one = with_rate_of_new(setup, 1.0, (module,))
        yield Variant(one, detail=f"{module[:-1]} learns at the backbone's rate")
    for module, called in {
        "layer": "the backbone",
        "ppm.": "the pyramid",
        "cls.": "the main head",
        "aux.": "the auxiliary head",
    }.items():
        still = with_rate_of_new(setup, 0.0, (module,))
        yield Variant(still, detail=f"{called} does not learn: it is in no group")


@bug(
    "poly-schedule",
    says="the learning rates fall otherwise than by the recipe's power: {detail}",
    advice="lr = lr_0 * (1 - i / steps)^power, i counted from 0 and in iterations, not in epochs",
    scope="network",
)
def _poly_schedule(site: TrainingSite) -> TrainingVariants:
    setup = site.program
    lrs, power = setup.recipe.lrs, setup.recipe.poly_power
    if power is None or len(lrs) < 2:
        return
    steps = len(lrs)
    longer = poly_rates(lrs[0], steps + 1, power)
    for detail, others in {
        "linearly, by the power 1": poly_rates(lrs[0], steps, 1.0),
        "by the power 2": poly_rates(lrs[0], steps, 2.0),
        "steps are counted from 1": (*lrs[1:], 0.0),
        "there is one step more to come": longer[:-1],
    }.items():
        yield Variant(with_recipe(setup, lrs=others), detail=detail)
