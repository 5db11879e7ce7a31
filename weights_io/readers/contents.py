"""What a reader returns."""

from __future__ import annotations

from typing import NamedTuple


class Contents(NamedTuple):
    """The container's name, its tree, its text metadata, and what is to be said of how it is."""

    container: str
    root: object
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()
