"""Recipes: the named ones hold what their sources say; what is unknown is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repvgg_ref.train.recipe import Recipe, RecipeError, load_recipe, recipe_from, recipe_names


def test_the_package_ships_these() -> None:
    papers = ["official-first", "official-head", "paper-120", "paper-200"]
    assert recipe_names() == ["cifar", "digits", "fine-tune", *papers, "pspnet", "scenes"]


def test_the_papers_own() -> None:
    """Section 4.1 of arXiv 2101.03697."""
    light, heavy = load_recipe("paper-120"), load_recipe("paper-200")
    for recipe in (light, heavy):
        assert (recipe.batch, recipe.lr, recipe.momentum, recipe.weight_decay) == (
            256,
            0.1,
            0.9,
            1e-4,
        )
        assert (recipe.schedule, recipe.nesterov, recipe.decay) == ("cosine", False, "kernels")
    assert (light.epochs, light.warm_up_epochs, light.label_smoothing, light.mixup) == (
        120,
        0,
        0,
        0,
    )
    assert (heavy.epochs, heavy.warm_up_epochs, heavy.auto_augment) == (200, 5, "autoaugment")
    assert heavy.label_smoothing > 0
    assert heavy.mixup > 0


def test_the_official_trainers() -> None:
    first, head = load_recipe("official-first"), load_recipe("official-head")
    assert (first.epochs, first.nesterov, first.warm_up_epochs, first.decay) == (
        120,
        False,
        0,
        "official-first",
    )
    assert (head.epochs, head.nesterov, head.warm_up_epochs, head.label_smoothing) == (
        300,
        True,
        5,
        0.1,
    )
    assert (head.crop_ratio, head.lr_per_256) == (1.0, True)


def test_custom_l2_takes_the_decay_from_the_kernels_it_replaces_and_no_other() -> None:
    factors = load_recipe("official-first", {"custom_l2": True}).factors
    assert factors("stage0.rbr_dense.conv.weight").decay == 0
    assert factors("stage0.rbr_1x1.conv.weight").decay == 0
    assert factors("linear.weight").decay == 1
    assert factors("linear.bias").lr == 2


def test_a_recipe_survives_json() -> None:
    recipe = load_recipe("paper-200", {"step_epochs": (1.0, 2.5)})
    assert recipe_from(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\nlr = 1\n", encoding="utf-8")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.epochs, recipe.lr) == ("mine", 3, 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("leraning_rate = 0.1", "leraning_rate"),
        ("lr = '0.1'", "lr"),
        ("epochs = 1.5", "epochs"),
        ("nesterov = 1", "nesterov"),
        ("momentum = nan", "momentum"),
        ("step_epochs = 3", "step_epochs"),
        ("step_epochs = ['a']", "step_epochs"),
        ("epochs = ", "no TOML"),
        ("schedule = 'linear'", "schedule"),
    ],
)
def test_what_a_file_may_not_say_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("accumulate", 3),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.5),
        ("weight_decay", -1.0),
        ("label_smoothing", 1.1),
        ("ema", 1.0),
        ("crop_min_area", 0.0),
        ("decay", "all"),
        ("step_epochs", (float("nan"),)),
    ],
)
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=field):
        Recipe(**{field: value})


@pytest.mark.parametrize("name", ["paper-121", "../digits", "missing.toml", ""])
def test_an_unknown_recipe_lists_the_known_ones(name: str) -> None:
    with pytest.raises(RecipeError, match="paper-120"):
        load_recipe(name)
