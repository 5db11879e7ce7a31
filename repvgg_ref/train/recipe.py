"""Recipes: everything about a training that changes its numbers, as one frozen record.

The named ones are the TOML files in ``recipes/``; the command offers every field as an option.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from repvgg_ref.blocks.catalogue import require_block
from repvgg_ref.errors import ReportedError, did_you_mean
from repvgg_ref.models.pspnet import REDUCTION
from repvgg_ref.train.decay import DECAY_RULES, factors_of
from repvgg_ref.train.sgd import Factors

FOLDER = Path(__file__).parent / "recipes"
DENSE_CROP = "segmentation"  # the crop of pictures whose pixels have labels
FROM_FILE = "init"  # in place of a model's name: the network of the file to start from


class RecipeError(ReportedError):
    """A recipe that does not exist, or says something impossible."""


def _field(default: Any, says: str, *choices: str) -> Any:
    """A field of `Recipe` with what the command's help says about it."""
    return field(default=default, metadata={"help": says, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """What to train and how; each field's meaning stands beside it.

    Source of the named recipes: section 4.1 of arXiv 2101.03697 and the two official trainers.
    """

    name: str = _field("custom", "name of the recipe")
    model: str = _field("RepVGG-A0", "an official model, digits, or init: the network of --init")
    block: str = _field("repvgg", "kind of block, such as repvgg, plain or acb")
    size: int = _field(224, "height and width of the network's input, in pixels")
    epochs: int = _field(120, "passes over the training images")
    batch: int = _field(256, "images a step, over all ranks and accumulated parts")
    accumulate: int = _field(1, "parts a step's batch is computed in, one after the other")
    lr: float = _field(0.1, "learning rate at the top of the schedule")
    lr_per_256: bool = _field(False, "lr is meant for 256 images a step and scales with batch")
    schedule: str = _field(
        "cosine", "shape of the learning rate", "cosine", "poly", "step", "constant"
    )
    poly_power: float = _field(0.9, "exponent of the poly schedule")
    step_epochs: tuple[float, ...] = _field((30.0, 60.0, 90.0), "epochs at which lr drops (step)")
    step_factor: float = _field(0.1, "what lr is multiplied by at each drop (step)")
    final_lr: float = _field(0.0, "where the cosine ends")
    warm_up_epochs: float = _field(0.0, "epochs of linear warm-up")
    warm_up_start: float = _field(0.0, "first learning rate of the warm-up, as a part of lr")
    momentum: float = _field(0.9, "momentum of SGD")
    nesterov: bool = _field(False, "Nesterov's momentum")
    weight_decay: float = _field(1e-4, "weight decay")
    decay: str = _field("kernels", "which arrays decay, and learn faster", *DECAY_RULES)
    custom_l2: bool = _field(False, "decay the equivalent kernels, as the first official trainer")
    label_smoothing: float = _field(0.0, "label smoothing")
    mixup: float = _field(0.0, "alpha of mixup; 0 is off")
    drop: bool = _field(False, "dropout and stochastic depth at the rates the network has them")
    ema: float = _field(0.0, "decay of the averaged weights, a step; 0 is off")
    crop: str = _field(
        "resized",
        "random crop: resized (to size), shifted, or PSPNet's augmentations of labelled pixels",
        *("resized", "shift", DENSE_CROP),
    )
    crop_min_area: float = _field(0.08, "least part of the picture in a resized crop")
    shift: int = _field(4, "largest shift in pixels (crop = shift)")
    flip: bool = _field(True, "mirror half of the pictures")
    auto_augment: str = _field(
        "none",
        "published augmentation policy",
        "none",
        "autoaugment",
        "autoaugment-cifar10",
        "randaugment",
    )
    crop_ratio: float = _field(0.875, "part of the picture that evaluation looks at")

    def __post_init__(self) -> None:
        require_block(self.block)
        for setting, wrong, wanted in _wrong(self):
            if wrong:
                raise RecipeError(
                    f"recipe {self.name}: {setting} cannot be that",
                    got=getattr(self, setting),
                    wanted=wanted,
                )

    @property
    def factors(self) -> Callable[[str], Factors]:
        """Official name -> what multiplies learning rate and decay."""
        return partial(factors_of, rule=self.decay, custom_l2=self.custom_l2)

    @property
    def peak_lr(self) -> float:
        """The learning rate at the top of the schedule, for this batch."""
        return self.lr * self.batch / 256 if self.lr_per_256 else self.lr

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def recipe_names() -> list[str]:
    """The recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe called `name`, or in the TOML file of that path, with some fields replaced.

    Raises
    ------
    RecipeError
        If there is none, it is no TOML, or a field is unknown or impossible.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RecipeError(
            "there is no such recipe",
            got=repr(name),
            wanted=", ".join(recipe_names()) + ", or a path ending in .toml",
            advice=did_you_mean(name, recipe_names()),
        ) from None
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path.name} is no TOML", got=error) from None
    given = recipe_from({"name": path.stem} | settings)
    return replace(given, **dict(overrides)) if overrides else given


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """A recipe of TOML's or JSON's values; unknown fields and wrong types are refused by name."""
    hints = get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in hints:
            raise RecipeError(
                "a recipe has no such field",
                got=name,
                wanted=", ".join(f.name for f in fields(Recipe)),
                advice=did_you_mean(name, hints),
            )
        values[name] = _typed(name, value, hints[name])
    return Recipe(**values)


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type; an integer is a float, a list a tuple, nothing else."""
    if kind is float and type(value) is int:
        return float(value)
    if kind == tuple[float, ...] and isinstance(value, list | tuple):
        return tuple(_typed(name, entry, float) for entry in value)
    if kind not in (int, float, bool, str) or type(value) is not kind:
        wanted = getattr(kind, "__name__", "") if isinstance(kind, type) else "a list of numbers"
        raise RecipeError(
            f"the recipe's field {name} has another type", got=repr(value), wanted=wanted
        )
    return value


_NOT_OF_PIXELS = {"label_smoothing": 0.0, "mixup": 0.0, "auto_augment": "none", "custom_l2": False}


def _is_dense(recipe: Recipe) -> bool:
    return recipe.crop == DENSE_CROP


def _wrong(recipe: Recipe) -> list[tuple[str, bool, str]]:
    """Field, whether its value is impossible, and what is possible."""
    whole = ("size", "epochs", "batch", "accumulate")
    parts = ("momentum", "label_smoothing", "ema", "warm_up_start")
    sizes = ("weight_decay", "mixup", "final_lr", "poly_power", "warm_up_epochs", "shift")
    choices = {f.name: f.metadata["choices"] for f in fields(recipe) if f.metadata["choices"]}
    return [
        *((name, getattr(recipe, name) < 1, "at least 1") for name in whole),
        *((name, not 0 <= getattr(recipe, name) <= 1, "a number from 0 to 1") for name in parts),
        *(
            (name, not 0 <= getattr(recipe, name) < math.inf, "a finite number of at least 0")
            for name in sizes
        ),
        *(
            (name, getattr(recipe, name) not in known, ", ".join(known))
            for name, known in choices.items()
        ),
        (
            "step_epochs",
            not all(0 < epoch < math.inf for epoch in recipe.step_epochs),
            "numbers above 0",
        ),
        ("lr", not 0 < recipe.lr < math.inf, "a finite number above 0"),
        ("ema", recipe.ema == 1, "below 1"),
        ("size", _is_dense(recipe) and recipe.size % REDUCTION != 1, "8k + 1, such as 713"),
        *(
            (name, _is_dense(recipe) and getattr(recipe, name) != off, f"{off} for labelled pixels")
            for name, off in _NOT_OF_PIXELS.items()
        ),
        ("crop_min_area", not 0 < recipe.crop_min_area <= 1, "above 0, at most 1"),
        ("crop_ratio", not 0 < recipe.crop_ratio <= 1, "above 0, at most 1"),
        ("step_factor", not 0 < recipe.step_factor <= 1, "above 0, at most 1"),
        (
            "accumulate",
            recipe.batch % max(1, recipe.accumulate) != 0,
            f"a divisor of batch ({recipe.batch})",
        ),
        (
            "nesterov",
            recipe.nesterov and recipe.momentum == 0,
            "a momentum above 0 with it",
        ),
    ]
