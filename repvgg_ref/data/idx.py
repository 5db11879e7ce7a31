"""MNIST's file format, which Fashion-MNIST, KMNIST and others share.

Source: the description on MNIST's page: two zero bytes, the type (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit number, then the bytes. Plain files or gzip's.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.source import ArraySource, DataError, Standardise, class_names
from weights_io import sanitize

_PREFIXES = {"train": "train", "val": "t10k"}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_UNSIGNED_BYTE = 8
_MOST_BYTES = 2**31


def is_idx(folder: Path) -> bool:
    """Whether the folder holds MNIST's four files, or their training part."""
    return _found(folder, f"train-{_IMAGES}") is not None


def idx_source(folder: Path, *, split: str) -> ArraySource:
    """Greyscale pictures, standardised by the training pictures' own mean and deviation.

    Raises
    ------
    DataError
        If a file is missing, of another format, cut off, or its labels do not fit.
    """
    training = _array(folder, f"train-{_IMAGES}", 3)
    labels = _array(folder, f"{_PREFIXES[split]}-{_LABELS}", 1)
    images = training if split == "train" else _array(folder, f"{_PREFIXES[split]}-{_IMAGES}", 3)
    return ArraySource(
        images[..., None],
        labels,
        classes=class_names(folder) or tuple(map(str, range(int(labels.max(initial=0)) + 1))),
        standardise=_standardise(training),
        title=sanitize(folder / split),
    )


def _standardise(images: Array) -> Standardise:
    """Mean and deviation of all pixels, to four digits as they are usually stated."""
    counts = np.bincount(images.reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=counts)
    deviation = math.sqrt(np.average((levels - mean) ** 2, weights=counts))
    return Standardise(1 / 255, (round(float(mean), 4),), (round(deviation, 4) or 1.0,))


def _found(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _array(folder: Path, name: str, dimensions: int) -> Array:
    path = _found(folder, name)
    if path is None:
        raise DataError(f"{sanitize(folder)}: {name} is missing", wanted="MNIST's four files")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or tuple(head[:4]) != (
                0,
                0,
                _UNSIGNED_BYTE,
                dimensions,
            ):
                raise _damaged(path, f"a header of {head[:4].hex(' ')}")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            size = math.prod(shape)
            if not 0 < size <= _MOST_BYTES:
                raise _damaged(path, f"an array of shape {shape}")
            data = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from None
    if len(data) != size:
        raise _damaged(path, f"{len(data)} bytes or more, not {size}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _damaged(path: Path, got: str) -> DataError:
    return DataError(f"{sanitize(path)}: not whole in MNIST's format", got=got)
