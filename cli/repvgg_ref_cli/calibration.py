"""Images that ranges of activations are measured on: an array, pictures of a folder, a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from repvgg_ref.errors import ReportedError
from repvgg_ref_cli.batches import read_batch
from repvgg_ref_cli.options import note
from repvgg_ref_cli.progress import ProgressBar

if TYPE_CHECKING:
    from repvgg_ref.arrays import Array
    from repvgg_ref.data.source import Source
    from repvgg_ref.models.network import Model

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


class Parted(NamedTuple):
    """Images that ranges are measured on, and others that gains are counted on.

    `images` is None of a single one, which serves for both; `labels` are those of `held_out`, or
    None where nothing says them.
    """

    images: Array | None
    held_out: Array
    labels: Array | None


def calibration_images(where: str, model: Model, limit: int) -> Array:
    """At most `limit` images (N, C, H, W), evenly spread over what `where` holds.

    Parameters
    ----------
    where : str
        A file that `--inputs` of verify takes; a folder with pictures in it at any depth, labels or
        not; or the name of a data set that `train --data` takes, whose training part it is.
    """
    from repvgg_ref.data.open import open_data

    path = Path(where)
    if path.is_file():
        return _spread(read_batch(path, model), limit)
    try:
        source = open_data(where, split="train", channels=model.arch.in_channels)
        return _of_source(source, model, limit)[0]
    except ReportedError:
        pictures = _pictures(path)
        if not pictures:
            raise
        return _of_pictures(pictures, model, limit)


def parted_images(where: str, model: Model, limit: int, held_out: int) -> Parted:
    """The same, and at most `held_out` others, on which `train --data` would not have trained.

    Of a data set they are its ``val``, or what `train` holds out of it, with labels if the classes
    are the model's; of anything else every second image.
    """
    from repvgg_ref.data.open import open_parts

    path = Path(where)
    if path.is_file():
        return halves(_spread(read_batch(path, model), limit + held_out))
    try:
        parts = open_parts(where, channels=model.arch.in_channels)
        images, _ = _of_source(parts.training, model, limit)
        found = Parted(images, *_of_source(parts.test, model, held_out))
    except ReportedError:
        pictures = _pictures(path)
        if not pictures:
            raise
        return halves(_of_pictures(pictures, model, limit + held_out))
    for message in parts.notes:
        note(message)
    return found


def halves(images: Array) -> Parted:
    """Every second image apart from the others; a single one cannot be parted."""
    return (
        Parted(images[::2], images[1::2], None) if len(images) > 1 else Parted(None, images, None)
    )


def _spread(images: Array, limit: int) -> Array:
    return images[:: max(1, -(-len(images) // limit))]


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
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


def _of_source(source: Source, model: Model, limit: int) -> tuple[Array, Array | None]:
    """At most `limit` images of a data set, and their labels where its classes are the model's."""
    from contextlib import closing

    import numpy as np

    from repvgg_ref.data.loader import Loader
    from repvgg_ref.data.source import Subset
    from repvgg_ref.train.sources import standardisation, validation_transform

    channels = model.arch.in_channels
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
