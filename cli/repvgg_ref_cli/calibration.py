"""Images that ranges of activations are measured on: an array, pictures of a folder, a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repvgg_ref.errors import ReportedError
from repvgg_ref_cli.batches import read_batch
from repvgg_ref_cli.progress import ProgressBar

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.models.network import Model

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


def calibration_images(where: str, model: Model, limit: int) -> Array:
    """At most `limit` images (N, C, H, W), evenly spread over what `where` holds.

    Parameters
    ----------
    where : str
        A file that `--inputs` of verify takes; a folder with pictures in it at any depth, labels or
        not; or the name of a data set that `train --data` takes, whose training part it is.
    """
    return labelled_images(where, model, limit)[0]


def labelled_images(where: str, model: Model, limit: int) -> tuple[Array, Array | None]:
    """The same, and their labels where `where` is a data set with the model's classes."""
    path = Path(where)
    if path.is_file():
        return _spread(read_batch(path, model), limit), None
    try:
        return _of_data(where, model, limit)
    except ReportedError:
        pictures = _pictures(path) if path.is_dir() else []
        if not pictures:
            raise
        return _of_pictures(pictures, model, limit), None


def _spread(images: Array, limit: int) -> Array:
    return images[:: max(1, -(-len(images) // limit))]


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())


def _of_pictures(pictures: list[Path], model: Model, limit: int) -> Array:
    import numpy as np

    from repvgg_ref.data.images import network_input

    chosen = pictures[:: max(1, -(-len(pictures) // limit))]
    images = []
    with ProgressBar("reading") as progress:
        for done, picture in enumerate(chosen):
            progress(picture.name, done, len(chosen))
            images.append(network_input(picture, model.arch, about=model.about))
    return np.concatenate(images)


def _of_data(where: str, model: Model, limit: int) -> tuple[Array, Array | None]:
    from contextlib import closing

    import numpy as np

    from repvgg_ref.data.loader import Loader
    from repvgg_ref.data.open import open_data
    from repvgg_ref.data.source import Subset
    from repvgg_ref.train.sources import standardisation, validation_transform

    channels = model.arch.in_channels
    source = open_data(where, split="train", channels=channels, decoder="auto")
    if source.channels != channels:
        raise ReportedError(
            "the pictures are not of the model's kind",
            got=f"{source.channels} channels",
            wanted=f"{channels} channels",
        )
    transform = validation_transform(
        model, source, size=None, resize=None, interpolation="bilinear"
    )
    loader = Loader(
        Subset(source, limit),
        transform=transform,
        batch_size=64,
        threads=2,
        shuffle=False,
        drop_last=False,
    )
    standardise = standardisation(model, source)
    with closing(loader.epoch(0)) as batches:
        parts = [(standardise(batch.images), batch.labels) for batch in batches]
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    known = model.about.classes in (None, source.classes)
    fits = known and len(source.classes) == model.arch.num_classes
    return images, labels if fits else None
