"""A training that takes a second: random pictures, a small network, a real loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.data import ArraySource, Loader, Standardise, evaluation_transform
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.train.comm import Comm
from repvgg_ref.train.events import Event, StepDone
from repvgg_ref.train.job import Job, prepare
from repvgg_ref.train.recipe import Recipe
from repvgg_ref.train.run import train
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.sources import Data

SIZE = 16
TINY = plain_architecture(depths=(2, 2), channels=(4, 4, 6), groups=2, num_classes=3, in_channels=3)
RECIPE = Recipe(
    name="tiny",
    size=SIZE,
    epochs=2,
    batch=8,
    lr=0.05,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.1,
)


def random_source(
    images: int, *, seed: int = 0, classes: int = 3, channels: int = 3
) -> ArraySource:
    """Noise whose brightness tells the class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    pixels = rng.integers(0, 128, (images, SIZE, SIZE, channels)) + 60 * labels[:, None, None, None]
    return ArraySource(
        np.minimum(pixels, 255).astype(np.uint8),
        labels,
        classes=tuple(map(str, range(classes))),
        standardise=Standardise(1 / 255, (0.4,) * channels, (0.3,) * channels),
    )


def small_data(
    recipe: Recipe = RECIPE, comm: Comm | None = None, *, images: int = 40, seed: int = 0
) -> Data:
    """`images` to train on and 12 to evaluate on, loaded as the recipe and the rank say."""
    training, test = random_source(images), random_source(12, seed=1)
    look = evaluation_transform(size=recipe.size, crop_ratio=1.0)
    rank, ranks = (comm.rank, comm.size) if comm else (0, 1)

    def loader(source: ArraySource, batch: int, keep: bool) -> Loader:
        return Loader(
            source,
            transform=look,
            batch_size=batch,
            seed=seed,
            rank=rank,
            ranks=ranks,
            shuffle=keep,
            drop_last=keep,
        )

    return Data(
        loader(training, recipe.batch // recipe.accumulate, True),
        loader(test, 6, False),
    )


def small_job(
    out: Path,
    *,
    recipe: Recipe = RECIPE,
    arch: Network | None = TINY,
    comm: Comm | None = None,
    data: Data | None = None,
    **settings: Any,
) -> Job:
    """A prepared training in float64 on the reference operators, unless said otherwise."""
    asked = {"backend": "reference", "dtype": "float64"} | settings
    run = Settings(recipe, out, **asked)
    data = data or small_data(recipe, comm, seed=run.seed)
    return prepare(run, comm=comm, data=data, arch=arch)


def changed(**fields: Any) -> Recipe:
    """The tiny recipe with other values."""
    return replace(RECIPE, **fields)


def run(job: Job, stop: Callable[[], bool] = lambda: False) -> list[Event]:
    """All events of a whole training."""
    return list(train(job, stop=stop))


def losses(events: list[Event]) -> list[float]:
    """The loss of every step."""
    return [event.loss for event in events if isinstance(event, StepDone)]
