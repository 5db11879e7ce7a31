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
        images = read_batch(path, model)
        return images[_even(len(images), limit)]
    try:
        source = open_data(where, split="train", channels=model.arch.in_channels)
        return _of_source(source, model, limit)[0]
    except ReportedError:
        pictures = _pictures(path)
        if not pictures:
            raise
        return _of_pictures([pictures[i] for i in _even(len(pictures), limit)], model)


def parted_images(where: str, model: Model, limit: int, held_out: int) -> Parted:
    """The same, and at most `held_out` others, on which `train --data` would not have trained.

    Of a data set they are its ``val``, or what `train` holds out of it, with labels if the classes
    are the model's; of anything else every second image.
    """
    from repvgg_ref.data.open import open_parts

    path = Path(where)
    if path.is_file():
        images = read_batch(path, model)
        ranges, others = _said(where, parted(len(images), limit, held_out))
        return of_both(images[ranges], images[others])
    try:
        parts = open_parts(where, channels=model.arch.in_channels)
        images, _ = _of_source(parts.training, model, limit)
        found = Parted(images, *_of_source(parts.test, model, held_out))
    except ReportedError:
        pictures = _pictures(path)
        if not pictures:
            raise
        ranges, others = _said(where, parted(len(pictures), limit, held_out))
        chosen = ([pictures[i] for i in each] for each in (ranges, others))
        return of_both(*(_of_pictures(each, model) for each in chosen))
    for message in parts.notes:
        note(message)
    return found


def parted(count: int, limit: int, held_out: int) -> tuple[Array, Array]:
    """Which of `count` images ranges are measured on, and which others gains are counted on.

    At most `limit` and `held_out`; of fewer than both at most half are for the ranges, unless the
    others are enough. All are spread evenly. A single image serves for both.
    """
    import numpy as np

    if count == 1:
        return np.arange(0), np.arange(1)
    ranges = min(limit, max(-(-count // 2), count - held_out))
    chosen = _even(count, ranges + min(held_out, count - ranges))
    first = _even(len(chosen), ranges)
    return chosen[first], np.delete(chosen, first)


def _said(where: str, parts: tuple[Array, Array]) -> tuple[Array, Array]:
    """The same, said aloud: what the images are used for is no part of the file."""
    ranges, others = map(len, parts)
    if ranges:
        note(
            f"{where} has no part for it, so its images are parted: ranges from {ranges} of them, "
            f"gains on {others} others (--limit, --held-out)"
        )
    else:
        note(f"{where} holds one image, which serves for ranges and gains")
    return parts


def of_both(ranges: Array, others: Array) -> Parted:
    """Images without labels; those of `others` serve for both if there are no `ranges`."""
    return Parted(ranges if len(ranges) else None, others, None)


def _even(count: int, most: int) -> Array:
    """At most `most` places of `count`, evenly spread."""
    import numpy as np

    chosen = min(count, most)
    found: Array = np.arange(chosen) * count // max(chosen, 1)
    return found


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())


def _of_pictures(chosen: list[Path], model: Model) -> Array:
    import numpy as np

    from repvgg_ref.data.images import network_input

    images = []
    with ProgressBar("reading") as progress:
        for done, picture in enumerate(chosen):
            progress(picture.name, done, len(chosen))
            images.append(network_input(picture, model.arch, about=model.about))
    return np.concatenate(images) if images else np.empty(0)


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
