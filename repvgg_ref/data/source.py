"""What a data set is to the loader: labelled pictures, found by their index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.errors import ReportedError

if TYPE_CHECKING:
    from PIL.Image import Image


class DataError(ReportedError):
    """A data set that cannot be used."""


class Standardise(NamedTuple):
    """How uint8 pixels become the network's input: ``x = (images * scale - mean) / std``.

    `mean` and `std` hold one number a channel.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Array) -> Array:
        """``(N, H, W, C)`` uint8 -> ``(N, C, H, W)`` float32, on the CPU."""
        return np.ascontiguousarray(self.view(images, np.float32))

    def view(self, images: Array, dtype: Any) -> Array:
        """The same in any dtype and wherever the images are; channels stay last in memory."""
        xp = array_module(images)
        scale, mean, std = (xp.asarray(value, dtype) for value in self)
        x: Array = (images.astype(dtype) * scale - mean) / std
        return x.transpose(0, 3, 1, 2)


CLASS_NAMES = "classes.txt"  # beside files that number their classes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in Pillow's greyscale
IMAGENET_RGB = Standardise(1 / 255, IMAGENET_MEAN, IMAGENET_STD)
IMAGENET_GREY = Standardise(
    1 / 255,
    (float(np.dot(IMAGENET_MEAN, LUMA)),),
    (float(np.dot(IMAGENET_STD, LUMA)),),
)


class Source(Protocol):
    """A data set.

    Attributes
    ----------
    classes : tuple of str
        Names; a label is an index into them.
    channels : int
        3 (pictures in mode RGB) or 1 (mode L).
    standardise : Standardise
    labels : array, shape (len(source),), int64
    side : int or None
        Height and width if all pictures are squares of one size.
    """

    classes: tuple[str, ...]
    channels: int
    standardise: Standardise
    labels: Array
    side: int | None

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def name(self, index: int) -> str:
        """What people find the picture by: a path, or a place in a file."""
        ...

    def key(self, index: int) -> str:
        """What the picture is called within the data set, wherever that lies."""
        ...

    def stored_size(self, index: int) -> int:
        """How many bytes the picture is stored in; 0 if it is not stored."""
        ...

    def stored(self, index: int) -> bytes:
        """Those bytes."""
        ...

    def picture(self, index: int) -> Image:
        """The decoded picture; called by several threads at once.

        Raises
        ------
        ImageError, OSError
            If this one cannot be read; the loader passes over it.
        """
        ...


class ArraySource:
    """Pictures in memory.

    Parameters
    ----------
    images : array, shape (N, H, W, C), uint8, C = 1 or 3
    labels : int array, shape (N,)
    classes : tuple of str
    standardise : Standardise
    title : str
        Part of the pictures' names.

    Raises
    ------
    DataError
        If the shapes do not fit, or a label names no class.
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        *,
        classes: tuple[str, ...],
        standardise: Standardise,
        title: str = "array",
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
            raise DataError(
                "images of another shape or type",
                got=f"{images.dtype} {images.shape}",
                wanted="uint8 (N, H, W, 1 or 3)",
            )
        self.images, self.labels = images, checked_labels(labels, len(images), len(classes))
        self.classes, self.standardise, self.title = classes, standardise, title
        self.channels: int = images.shape[3]
        self.side: int | None = images.shape[1] if images.shape[1] == images.shape[2] else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """``title[index]``."""
        return f"{self.title}[{index}]"

    def key(self, index: int) -> str:
        """The index."""
        return str(index)

    def stored_size(self, index: int) -> int:
        """Of its pixels."""
        return int(self.images[index].nbytes)

    def stored(self, index: int) -> bytes:
        """Its pixels."""
        return bytes(self.images[index].tobytes())

    def picture(self, index: int) -> Image:
        """A copy of the array's picture."""
        from PIL import Image as Pillow

        pixels = self.images[index]
        return Pillow.fromarray(pixels if self.channels == 3 else pixels[:, :, 0])


def class_names(folder: Path) -> tuple[str, ...] | None:
    """The names in the folder's ``classes.txt``, one a line; None if there is no such file."""
    path = folder / CLASS_NAMES
    if not path.is_file():
        return None
    return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines()) or None


def checked_labels(labels: Array, images: int, classes: int) -> Array:
    """`labels` as int64.

    Raises
    ------
    DataError
        If there is not one whole number an image, in ``0 ... classes - 1``.
    """
    if labels.shape != (images,) or labels.dtype.kind not in "iu":
        raise DataError(
            "labels of another shape or type",
            got=f"{labels.dtype} {labels.shape}",
            wanted=f"whole numbers ({images},)",
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"label {labels[wrong[0]]} of image {wrong[0]} is out of range",
            wanted=f"0 ... {classes - 1}, as there are {classes} classes",
        )
    return labels.astype(np.int64)


class Part:
    """The pictures of a source at some `places`, int array (count,)."""

    def __init__(self, source: Source, places: Array) -> None:
        self.source, self.classes, self.channels = source, source.classes, source.channels
        self.standardise, self.side = source.standardise, source.side
        self.dense: bool = getattr(source, "dense", False)
        self._places, self.labels = places, source.labels[places]

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """As in the source."""
        return self.source.name(int(self._places[index]))

    def key(self, index: int) -> str:
        """As in the source."""
        return self.source.key(int(self._places[index]))

    def stored_size(self, index: int) -> int:
        """As in the source."""
        return self.source.stored_size(int(self._places[index]))

    def stored(self, index: int) -> bytes:
        """As in the source."""
        return self.source.stored(int(self._places[index]))

    def picture(self, index: int) -> Image:
        """As in the source."""
        return self.source.picture(int(self._places[index]))


class Subset(Part):
    """`count` pictures of a source, evenly spread over it; all of them if it has fewer."""

    def __init__(self, source: Source, count: int) -> None:
        count = min(count, len(source))
        super().__init__(source, np.arange(count) * len(source) // count)


class Renumbered(Part):
    """A source whose labels are places in `classes`, which are its own in another order."""

    def __init__(self, source: Source, classes: tuple[str, ...]) -> None:
        super().__init__(source, np.arange(len(source)))
        places = np.array([classes.index(name) for name in source.classes], np.int64)
        self.classes, self.labels = classes, places[source.labels]
