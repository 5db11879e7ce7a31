"""The learning rate: its ends, its warm-up, and batches of another size."""

from __future__ import annotations

from itertools import pairwise

import pytest

from repvgg_ref.train.recipe import Recipe, load_recipe, recipe_names
from repvgg_ref.train.schedule import learning_rate


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_starts_rises_and_falls_within_its_peak(name: str) -> None:
    recipe = load_recipe(name)
    total = recipe.epochs * 10
    rates = [learning_rate(recipe, step, steps_per_epoch=10) for step in range(total)]
    warm = round(recipe.warm_up_epochs * 10)
    assert all(a < b for a, b in pairwise(rates[:warm]))
    assert all(a >= b for a, b in pairwise(rates[warm:]))
    assert max(rates) <= recipe.peak_lr * (1 + 1e-12)
    # Poly ends with the last step's part of the way, to its power; cosines far below it.
    lowest = (1 / total) ** recipe.poly_power if recipe.schedule == "poly" else 1e-3
    assert rates[-1] <= lowest * recipe.peak_lr * (1 + 1e-12)


def test_the_rate_grows_with_the_batch_only_if_the_recipe_says_so() -> None:
    assert Recipe(lr=0.1, batch=512).peak_lr == 0.1
    assert Recipe(lr=0.1, batch=512, lr_per_256=True).peak_lr == 0.2


def test_a_warm_up_begins_at_its_part_and_ends_on_the_schedule() -> None:
    recipe = Recipe(lr=1.0, epochs=10, warm_up_epochs=2.5, warm_up_start=0.2, schedule="constant")
    rates = [learning_rate(recipe, step, steps_per_epoch=4) for step in range(12)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.6)
    assert rates[10:] == [1.0, 1.0]
