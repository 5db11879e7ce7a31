"""The learning rate as a pure function of the step; every schedule moves per iteration.

A warm-up replaces the schedule's first steps and does not shift it, as in the official trainers
(timm's ``CosineLRScheduler`` without ``warmup_prefix``).
"""

from __future__ import annotations

import math

from repvgg_ref.train.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step`, counted from 0.

    - cosine: ``final + (lr - final) * (1 + cos(pi t / T)) / 2`` (arXiv 1608.03983, equation 5)
    - poly: ``lr * (1 - t / T)^power`` (arXiv 1606.00915, section 3)
    - step: ``lr * factor^(epochs passed)``, torch's ``MultiStepLR``
    - constant: ``lr``

    with ``T = epochs * steps_per_epoch``, after a warm-up that is linear from
    ``warm_up_start * lr`` at step 0 to ``lr`` at its end (arXiv 1706.02677, section 2.2).
    """
    lr, total = recipe.peak_lr, recipe.epochs * steps_per_epoch
    warm = recipe.warm_up_epochs * steps_per_epoch
    if step < warm:
        return lr * (recipe.warm_up_start + (1 - recipe.warm_up_start) * step / warm)
    if recipe.schedule == "cosine":
        final = recipe.final_lr
        return final + (lr - final) * (1 + math.cos(math.pi * step / total)) / 2
    if recipe.schedule == "poly":
        return float(lr * (1 - min(step / total, 1.0)) ** recipe.poly_power)
    if recipe.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in recipe.step_epochs)
        return float(lr * recipe.step_factor**passed)
    return lr
