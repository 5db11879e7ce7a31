"""From what the user named to a data set."""

from __future__ import annotations

from pathlib import Path

from repvgg_ref.train.data.bundled import digits_source
from repvgg_ref.train.data.source import DataError, Source

SPLITS = ("train", "val")


def open_data(path: str | Path | None, *, split: str) -> Source:
    """The data set at `path`.

    Parameters
    ----------
    path : path or None
        None is the bundled digits.
    split : {"train", "val"}

    Raises
    ------
    DataError
        If there is nothing of a known kind, or it is empty or damaged.
    """
    if split not in SPLITS:
        raise DataError("there is no such split", got=repr(split), wanted=", ".join(SPLITS))
    if path is None:
        return digits_source(split)
    raise DataError("no data set of a known kind", got=path)
