"""Data as a network is to see it: to train on by a recipe, or to judge a checkpoint on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from repvgg_ref.data.dense import is_dense
from repvgg_ref.data.dense_transforms import DenseEvaluationTransform, DenseTrainingTransform
from repvgg_ref.data.loader import Loader
from repvgg_ref.data.open import open_data, open_parts
from repvgg_ref.data.source import DataError, Renumbered, Source, Standardise, Subset
from repvgg_ref.data.transforms import (
    EvaluationTransform,
    TrainingTransform,
    evaluation_transform,
    training_transform,
)
from repvgg_ref.models.network import Model
from repvgg_ref.models.published import PUBLISHED
from repvgg_ref.train.comm import Comm
from repvgg_ref.train.recipe import DENSE_CROP, Recipe
from repvgg_ref.train.settings import Settings
from weights_io import sanitize

HELD_OUT = "held-out"
_EVALUATION_BATCH = 128
_IMAGENET_CROP, _CROP_RATIO = 224, 0.875
_SHOWN = 3  # of the classes that are called otherwise


class Data(NamedTuple):
    """A data set in two parts; `held_out` and `notes` as in `repvgg_ref.data.Parts`."""

    training: Loader
    test: Loader
    held_out: str | None = None
    notes: tuple[str, ...] = ()


def open_sources(settings: Settings, comm: Comm, *, channels: int = 3) -> Data:
    """The data set that `settings` names, prepared as its recipe says.

    `channels` is 3, or 1 for greyscale pictures where the data set leaves the choice.

    Raises
    ------
    DataError
        If there is none, it is empty, or its two parts have other classes.
    """
    recipe = settings.recipe
    dense = recipe.crop == DENSE_CROP
    training, test, held_out, notes = open_parts(settings.data, channels=channels)
    if training.classes != test.classes:
        raise DataError(
            "training and evaluation pictures have other classes",
            got=f"{len(training.classes)} and {len(test.classes)} classes",
            wanted="the same folders in train and val",
        )
    _require_labels(recipe, training)
    loader = partial(Loader, threads=settings.threads, rank=comm.rank, ranks=comm.size)
    return Data(
        loader(
            training,
            transform=_seen(recipe),
            batch_size=recipe.batch // recipe.accumulate,
            seed=settings.seed,
        ),
        loader(
            test,
            transform=DenseEvaluationTransform(recipe.size)
            if dense
            else evaluation_transform(size=recipe.size, crop_ratio=recipe.crop_ratio),
            batch_size=_evaluation_batch(recipe.size) if dense else _EVALUATION_BATCH,
            shuffle=False,
            drop_last=False,
        ),
        held_out,
        notes,
    )


def _seen(recipe: Recipe) -> TrainingTransform | DenseTrainingTransform:
    """What training makes of a picture."""
    if recipe.crop == DENSE_CROP:
        return DenseTrainingTransform(recipe.size, flip=0.5 if recipe.flip else 0.0)
    return training_transform(
        size=recipe.size,
        crop=recipe.crop,
        scale=(recipe.crop_min_area, 1.0),
        shift=recipe.shift,
        flip=recipe.flip,
        auto_augment=recipe.auto_augment,
    )


def _evaluation_batch(size: int) -> int:
    """As many images as hold the pixels of a batch of classification's, a quarter of it."""
    return max(1, min(_EVALUATION_BATCH, _EVALUATION_BATCH * _IMAGENET_CROP**2 // size**2 // 4))


def _require_labels(recipe: Recipe, source: Source) -> None:
    """Refuse to train on pixels what has labels for pictures, and the other way round."""
    dense = recipe.crop == DENSE_CROP
    if dense != is_dense(source):
        has, needs = ("pixels", "pictures") if is_dense(source) else ("pictures", "pixels")
        raise DataError(
            f"recipe {recipe.name} is not for this data set",
            got=f"labels of {has}",
            wanted=f"labels of {needs}",
            advice="--recipe pspnet or scenes is for labelled pixels, others for labelled pictures",
        )


def open_validation(
    model: Model, path: str, *, split: str, decoder: str, limit: int | None = None
) -> Source:
    """The pictures to judge `model` on: all of a split, or `limit` evenly spread over it.

    The split `HELD_OUT` is what a training on these pictures is evaluated on. Classes that the
    model knows under the same names in another order get its numbers.

    Raises
    ------
    DataError
        If there is no such data set, or it has other classes or colours than the model.
    """
    how: Any = {"channels": model.arch.in_channels, "decoder": decoder}
    held_out = split == HELD_OUT
    source = open_parts(path, **how).test if held_out else open_data(path, split=split, **how)
    if len(source.classes) != model.arch.num_classes or source.channels != model.arch.in_channels:
        raise DataError(
            "the data set is not of the model's kind",
            got=f"{len(source.classes)} classes, {source.channels} channels",
            wanted=f"{model.arch.num_classes} classes, {model.arch.in_channels} channels",
            advice=None
            if is_dense(source)
            else "a label is the place of its folder among the sorted names",
        )
    if model.arch.is_dense != is_dense(source):
        raise DataError(
            "the data set is not of the model's kind",
            got=f"labels of {'pixels' if is_dense(source) else 'pictures'}",
            wanted="labels of pixels for a PSPNet, of pictures for a classifier",
        )
    known = model.about.classes
    if known is not None:
        _require_places(known, source.classes)
    if known is not None and known != source.classes and set(known) == set(source.classes):
        source = Renumbered(source, known)
    return source if limit is None else Subset(source, limit)


def _require_places(known: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse classes of which one bears the name that the model has for another."""
    if set(known) == set(classes):
        return
    moved = [name for i, name in enumerate(classes) if name in known and known.index(name) != i]
    if moved:
        raise DataError(
            "the data set has other classes than the model, and some of the same in other places",
            got=f"{sanitize(moved[0])} as number {list(classes).index(moved[0])}",
            wanted=f"number {known.index(moved[0])}, as the model knows it",
            advice="name the folders as the model's classes, or judge those that it knows only",
        )


def class_notes(model: Model, source: Source) -> list[str]:
    """What to say where the data's classes are called otherwise than those the model learnt."""
    known = model.about.classes
    if known is None or known == source.classes:
        return []
    pairs = zip(source.classes, known, strict=True)
    apart = [f"{own} for {its}" for own, its in pairs if own != its]
    shown = ", ".join(apart[:_SHOWN]) + (", ..." if len(apart) > _SHOWN else "")
    return [
        f"{len(apart)} classes of the data are not called as the model's ({shown}):"
        " taken by their places among the sorted names"
    ]


def standardisation(model: Model, source: Source) -> Standardise:
    """By the mean and deviation that the model was trained with, else the data set's usual ones."""
    about = model.about
    if about.mean is None or about.std is None:
        return source.standardise
    return Standardise(source.standardise.scale, about.mean, about.std)


def validation_transform(
    model: Model, source: Source, *, size: int | None, resize: int | None, interpolation: str
) -> EvaluationTransform:
    """Pictures as `model` saw them in training, unless `size` or `resize` is given.

    Where nobody says how that was: as its published accuracy was measured, and pictures smaller
    than ImageNet's crop as they are.
    """
    usual, ratio = _IMAGENET_CROP, _CROP_RATIO
    about = model.about
    if about.input_size is not None:
        usual, ratio = about.input_size[0], about.crop_ratio or ratio
    elif source.side is not None and source.side < _IMAGENET_CROP:
        usual, ratio = source.side, 1.0
    elif model.name in PUBLISHED:
        usual = PUBLISHED[model.name].size
    return evaluation_transform(
        size=size or usual, resize=resize, crop_ratio=ratio, interpolation=interpolation
    )
