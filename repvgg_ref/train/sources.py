"""The data of a training, as the loop sees it: batches to train on and batches to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

from repvgg_ref.data import (
    Batch,
    DataError,
    Loader,
    Standardise,
    evaluation_transform,
    open_data,
    training_transform,
)
from repvgg_ref.train.comm import Comm
from repvgg_ref.train.settings import Settings

_EVALUATION_BATCH = 128


class Batches(Protocol):
    """What the loop needs of a `Loader`."""

    @property
    def steps(self) -> int:
        """Batches an epoch, the same on all ranks."""

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Pictures that could not be read, and why."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of this rank from `first_step` on."""


class Data(NamedTuple):
    """A data set in two parts."""

    training: Batches
    test: Batches
    images: int
    test_images: int
    classes: tuple[str, ...]
    channels: int
    standardise: Standardise


def open_sources(settings: Settings, comm: Comm) -> Data:
    """The data set that `settings` names, prepared as its recipe says.

    Raises
    ------
    DataError
        If there is none, it is empty, or its two parts have other classes.
    """
    recipe = settings.recipe
    training, test = (open_data(settings.data, split=split) for split in ("train", "val"))
    if training.classes != test.classes:
        raise DataError(
            "training and evaluation pictures have other classes",
            got=f"{len(training.classes)} and {len(test.classes)} classes",
            wanted="the same folders in train and val",
        )
    seen = training_transform(
        size=recipe.size,
        crop=recipe.crop,
        scale=(recipe.crop_min_area, 1.0),
        shift=recipe.shift,
        flip=recipe.flip,
        auto_augment=recipe.auto_augment,
    )
    loader = partial(Loader, threads=settings.threads, rank=comm.rank, ranks=comm.size)
    return Data(
        loader(
            training,
            transform=seen,
            batch_size=recipe.batch // recipe.accumulate,
            seed=settings.seed,
        ),
        loader(
            test,
            transform=evaluation_transform(size=recipe.size, crop_ratio=recipe.crop_ratio),
            batch_size=_EVALUATION_BATCH,
            shuffle=False,
            drop_last=False,
        ),
        len(training),
        len(test),
        training.classes,
        training.channels,
        training.standardise,
    )
