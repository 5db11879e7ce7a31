"""CIFAR-10 and CIFAR-100 in their binary version, as their authors publish it.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009) and the format's
description on its page: a record is the label's byte (CIFAR-100: coarse, then fine) and 3072 bytes,
red, green and blue planes of 32 x 32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.source import ArraySource, DataError, Standardise
from weights_io import read_regular, sanitize

# Of the training pictures, scaled to 0 ... 1.
_CIFAR10 = Standardise(1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = Standardise(1 / 255, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


def is_cifar(folder: Path) -> bool:
    """Whether the folder holds the files of either set."""
    return (folder / "data_batch_1.bin").is_file() or (folder / "train.bin").is_file()


def cifar_source(folder: Path, *, split: str) -> ArraySource:
    """The pictures of ``data_batch_*.bin``/``test_batch.bin``, or ``train.bin``/``test.bin``.

    Raises
    ------
    DataError
        If a file is missing, cut off, or holds a label that has no name.
    """
    ten = (folder / "data_batch_1.bin").is_file()
    if ten:
        batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
        names, paths = "batches.meta.txt", batches if split == "train" else ["test_batch.bin"]
    else:
        names, paths = "fine_label_names.txt", ["train.bin" if split == "train" else "test.bin"]
    label_bytes = 1 if ten else 2
    records = np.concatenate([_records(folder / path, label_bytes + _PIXELS) for path in paths])
    planes = records[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
    return ArraySource(
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),  # (N, C, H, W) -> (N, H, W, C)
        records[:, label_bytes - 1],
        classes=_names(folder / names),
        standardise=_CIFAR10 if ten else _CIFAR100,
        title=sanitize(folder / split),
    )


def _records(path: Path, length: int) -> Array:
    data = _bytes(path)
    if not data or len(data) % length:
        raise DataError(
            f"{sanitize(path)}: not whole CIFAR records",
            got=f"{len(data)} bytes",
            wanted=f"a multiple of {length}",
        )
    return np.frombuffer(data, np.uint8).reshape(-1, length)


def _names(path: Path) -> tuple[str, ...]:
    lines = _bytes(path).decode("utf-8", "replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{sanitize(path)}: the file of CIFAR's is missing") from None
